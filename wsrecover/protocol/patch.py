"""JSON Patch (RFC 6902) of the documents that an app keeps in a context, within bounds."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

import jsonpatch
import orjson

from wsrecover.errors import InvalidEvent

from .encode import encode_json

__all__ = ["DOCUMENT_BYTES", "PATCH_OPERATIONS", "patched"]

DOCUMENT_BYTES: Final = 256 * 1024
"""Bytes of a document in JSON: both of a thread leave half of its context to the conversation."""

PATCH_OPERATIONS: Final = 1_000
"""Operations of one patch."""

_REFUSALS: Final = (
    jsonpatch.JsonPatchException,
    jsonpatch.JsonPointerException,
    ArithmeticError,
    AttributeError,
    LookupError,
    RecursionError,
    TypeError,
    ValueError,
)
"""What the library raises, also from within, for operations and paths that make no sense."""


def patched(document: Mapping[str, Any], patch: object) -> dict[str, Any]:
    """A new document: `document` with all operations of `patch` applied, in order.

    Raises `InvalidEvent` naming the operation that does not apply (`patch[2]`), or that the result is no
    object, too large (`DOCUMENT_BYTES`) or too deep.
    """
    if not isinstance(patch, list | tuple) or len(patch) > PATCH_OPERATIONS:
        raise InvalidEvent("patch", f"must be an array of at most {PATCH_OPERATIONS} operations")
    # Copies of both: what an operation adds, a later one may change.
    operations = orjson.loads(encode_json(patch, field="patch", max_bytes=4 * DOCUMENT_BYTES))
    result: dict[str, Any] = orjson.loads(orjson.dumps(dict(document)))
    for place, operation in enumerate(operations):
        field = f"patch[{place}]"
        try:
            result = jsonpatch.JsonPatch([operation]).apply(result, in_place=True)
        except _REFUSALS as error:
            raise InvalidEvent(field, f"does not apply: {str(error)[:200]}") from error
        if not isinstance(result, dict):
            raise InvalidEvent(field, "leaves no object")
        if operation["op"] == "copy":  # The one that can double what there is.
            encode_json(result, field=field, max_bytes=DOCUMENT_BYTES)
    encode_json(result, field="patch", max_bytes=DOCUMENT_BYTES)
    return result
