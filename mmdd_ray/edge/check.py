"""What a run needs to be possible at all, looked at before anything expensive; imports neither torch nor Ray."""

from mmdd_ray.config import Edge
from mmdd_ray.data.shards import check_data
from mmdd_ray.errors import UserError
from mmdd_ray.models import zoo


def check(settings: Edge) -> None:
    """Finds what would otherwise fail only hours later.

    Raises:
        ValueError: One sentence that names the setting to change.
    """
    images_kept(settings)
    if settings.finetune.checkpoint_steps < 1:
        raise UserError(f"finetune.checkpoint_steps={settings.finetune.checkpoint_steps} must be at least 1")
    zoo.check(
        {
            "features.clip": settings.features.clip,
            "finetune.generator": settings.finetune.generator,
            "captions.model": settings.captions.model,
            "students.image_model": settings.students.image_model,
            "students.text_model": settings.students.text_model,
        }
    )
    check_data(settings.data, settings.evaluation)


def images_kept(settings: Edge) -> int:
    """Images of the distilled set; each stands for `captions.per_image` pairs.

    Raises:
        ValueError: The pairs cannot be shared out evenly.
    """
    images, rest = divmod(settings.synthesis.pairs, settings.captions.per_image)
    if rest or images < 1:
        raise UserError(
            f"synthesis.pairs={settings.synthesis.pairs} is not a multiple of "
            f"captions.per_image={settings.captions.per_image}; change one of them"
        )
    return images
