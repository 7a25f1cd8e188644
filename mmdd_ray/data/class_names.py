"""Names of classes, from a text file; imports neither torch nor Ray."""

from fsspec.core import url_to_fs

from mmdd_ray.errors import UserError


def read_class_names(uri: str) -> list[str]:
    """The lines of a UTF-8 text file, a local path or a URI: the name of each class, from 0 on.

    Raises:
        UserError: it cannot be read, or a line is blank.
    """
    try:
        fs, path = url_to_fs(uri)
        text = fs.cat_file(path).decode("utf-8-sig")
    except Exception as error:  # each storage library raises its own, and they share no base class
        raise UserError(f"describe.class_names={uri} cannot be read as text: {error}") from error
    names = [" ".join(line.split()) for line in text.rstrip().splitlines()]
    if not names or not all(names):
        raise UserError(f"describe.class_names={uri} has a blank line; every class needs a name")
    return names
