"""What a data set is made of: fields, their description, and a record as bytes."""

import dataclasses
import re
from typing import Any, NamedTuple

import numpy as np

from vae_jax import tfexample
from vae_jax.config import UserError

FORMAT = 1  # of manifest.json
DTYPES = ("uint8", "int16", "int32", "int64", "float32")


class Field(NamedTuple):
    """One field of a record. dtype is a NumPy name or 'str'; at most one axis may be None (any length).

    Arrays are stored as raw little-endian bytes, scalars as numbers; `labels` names the classes of an int64 scalar.
    """

    shape: tuple[int | None, ...]
    dtype: str
    labels: tuple[str, ...] = ()


@dataclasses.dataclass(frozen=True)
class Spec:
    """What a data set holds. `digest` changes with any record, its order or its split, and with nothing else."""

    name: str
    fields: dict[str, Field]
    splits: dict[str, int]  # split -> records
    digest: str = ""
    facts: dict[str, Any] = dataclasses.field(default_factory=dict)  # JSON values without which the fields cannot be read: a sample rate

    def to_dict(self) -> dict:
        fields = {name: {"shape": list(f.shape), "dtype": f.dtype, "labels": list(f.labels)} for name, f in self.fields.items()}
        return {"name": self.name, "fields": fields, "splits": dict(self.splits), "digest": self.digest, "facts": dict(self.facts)}

    @staticmethod
    def from_dict(values: dict) -> "Spec":
        try:
            fields = {name: Field(tuple(f["shape"]), f["dtype"], tuple(f["labels"])) for name, f in values["fields"].items()}
            check_fields(fields)
            return Spec(str(values["name"]), fields, {k: int(v) for k, v in values["splits"].items()}, str(values["digest"]),
                        dict(values.get("facts", {})))
        except (KeyError, TypeError, AttributeError, ValueError) as error:
            raise UserError(f"The stored description of the data set is damaged ({type(error).__name__}: {error}).") from None


def check_fields(fields: dict[str, Field]) -> None:
    """Raises ValueError for a field that the format has no place for."""
    for name, f in fields.items():
        axes = all(d is None or isinstance(d, int) and d > 0 for d in f.shape) and f.shape.count(None) <= 1
        if not re.fullmatch(r"\w+", name) or not axes or f.dtype not in (*DTYPES, "str") or (f.dtype == "str" and f.shape):
            raise ValueError(f"field {name!r} cannot be stored as {f}")
        if f.labels and (f.dtype != "int64" or f.shape):
            raise ValueError(f"field {name!r} has labels and must be one int64")


def kind(field: Field) -> str:
    return "bytes" if field.shape or field.dtype == "str" else "float" if field.dtype == "float32" else "int"


def encode(fields: dict[str, Field], record: dict[str, Any]) -> bytes:
    """A record as the payload of one TFRecord. Raises ValueError where it does not fit its fields."""
    if record.keys() != fields.keys():
        raise ValueError(f"record has fields {sorted(record)}, the data set {sorted(fields)}")
    values = {}
    for name, field in fields.items():
        value = record[name]
        if field.dtype == "str":
            values[name] = value.encode()
        elif field.shape:
            value = np.asarray(value)
            fits = value.ndim == len(field.shape) and all(d is None or d == n for d, n in zip(field.shape, value.shape))
            if not fits or value.dtype.name != field.dtype:
                raise ValueError(f"field {name!r} is {value.dtype.name} {value.shape}, declared {field.dtype} {field.shape}")
            values[name] = value.astype(value.dtype.newbyteorder("<"), copy=False).tobytes()
        else:
            values[name] = float(value) if field.dtype == "float32" else int(value)
            if field.labels and not 0 <= values[name] < len(field.labels):
                raise ValueError(f"{name}={value} is outside its {len(field.labels)} classes")
    return tfexample.serialize(values)
