"""verify: checks a whole data set, every record against its checksums, and says what is damaged and where.

    python -m vae_jax verify --data=datasets/mnist
"""

from absl import flags

from vae_jax import records

DATA = flags.DEFINE_string("data", None, "Folder written by a data_prep script.", required=True)


def main(started: float) -> int:
    found = records.verify(DATA.value)
    counts = ", ".join(f"{split} {count:,}" for split, count in found["splits"].items())
    print(f"{DATA.value}: whole; {found['name']}, {counts} records, {found['bytes'] / 2**20:,.1f} MB in {found['files']} files, "
          f"digest {found['digest'][:16]}")
    return 0
