"""Names of the columns of a data set: ours, and those that a recipe maps to them."""

from collections.abc import Mapping

from vaopd.errors import ConfigError

OWN_NAMES = {
    "question": ("question", "problem"),
    "image": ("image", "images", "file_name", "file_names"),
    "answer": ("answer", "solution"),
    "id": ("id", "qid"),
    "kind": ("kind", "category"),
    "references": ("references",),
    "messages": ("messages", "conversations"),
    "teacher_images": ("teacher_images", "teacher_image"),
}
"""Fields of a problem that ``data.columns`` maps, with the columns that hold them otherwise."""


def checked_fields(columns: Mapping[str, str]) -> dict[str, str]:
    """Return a mapping of columns by the names of our fields.

    Raises:
        ConfigError: A key is not a field of a problem, or two keys name the same field.
    """
    field_of = {name: field for field, names in OWN_NAMES.items() for name in names}
    found: dict[str, str] = {}
    for key, column in columns.items():
        if key not in field_of:
            raise ConfigError(
                f"data.columns has the key {key:.80}, which is not a field of a problem; the "
                f"fields are {', '.join(OWN_NAMES)}; write FIELD: COLUMN"
            )
        if field_of[key] in found:
            raise ConfigError(
                f"data.columns maps {field_of[key]} twice ({key} is another name of it); map it "
                "to one column"
            )
        found[field_of[key]] = column
    return found
