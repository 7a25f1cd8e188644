"""EDGE's fine-tuning of the generator (Zhao et al., NeurIPS 2025, arXiv 2509.15472, section 3), on Ray Train."""

from mmdd_ray.data.sources import training_pairs
from mmdd_ray.diffusion.finetune import finetune
from mmdd_ray.engine.run_dir import StageDir, StageResult
from mmdd_ray.features.store import FeatureStore
from mmdd_ray.methods.edge.objective import EdgeObjective
from mmdd_ray.methods.edge.settings import Edge


def finetune_generator(stage: StageDir, features: FeatureStore, settings: Edge) -> StageResult:
    """Fine-tunes the generator; writes what ``diffusion.finetune.finetune`` writes.

    Raises:
        UserError: as ``diffusion.finetune.finetune``.
    """
    tuning, seed = settings.finetune, settings.run.seed
    pairs = training_pairs(settings.data, image_px=tuning.image_px, seed=seed, excluded=features.duplicates())
    return finetune(pairs, tuning, EdgeObjective(tuning, settings.features.clip), seed=seed, stage=stage)
