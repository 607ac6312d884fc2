"""Speech in, TFRecord folder out: one record a clip, with its speaker.

  python -m data_prep.speech --source=recordings.zip --out=datasets/fsdd --rate=8000 --seconds=1.0
  python -m data_prep.speech --source=recordings.zip --out=datasets/fsdd_theo --rate=8000 --hold_out=theo
  python -m data_prep.speech --source=VCTK-Corpus-0.92 --out=datasets/vctk --layout=vctk --mic=1 --seconds=4 --split=train:0.9,test:0.1

Layouts: `fsdd`, files named LABEL_SPEAKER_INDEX in any folder, index 0 to 4 = test, the others train; `speakers`, a folder a speaker; `vctk`,
.../pNNN/pNNN_nnn_micN.flac, where both microphones of an utterance stay in one group. A source is a folder, an archive, or `tfds:NAME`.
A shorter clip is filled up with zeros (`valid` counts its own samples), a longer one cut, or with --pieces kept whole in several records.
Every file found is kept or is in manifest.json with the reason why not. The same source, options and seed give the same bytes.
"""

import re

from absl import flags

from data_prep import clips, script
from data_prep.clips import Clip
from data_prep.intake import printable
from vae_jax.config import UserError

FLAGS = flags.FlagValues()
clips.define_flags(FLAGS, rate=8000)
flags.DEFINE_enum("layout", "fsdd", ["fsdd", "speakers", "vctk"], "how names say who speaks", flag_values=FLAGS)
flags.DEFINE_list("hold_out", [], "speakers whose clips are the test split; all others train", flag_values=FLAGS)
flags.DEFINE_enum("mic", "", ["", "1", "2"], "vctk: the microphone to keep; '' = both", flag_values=FLAGS)
flags.DEFINE_bool("pieces", False, "keep longer clips whole, as consecutive records", flag_values=FLAGS)

FSDD = re.compile(r"([^/_]+)_([^/]+)_(\d+)\.\w+")  # of the last part of a name
VCTK = re.compile(r"(?:.*/)?(\w+)/(\1_\d+)(?:_mic([12]))?\.\w+")
FSDD_TEST = 5  # recordings 0 to 4 of each speaker and digit are the set's own test split


def fsdd(source: clips.Source) -> tuple[list[Clip], list[tuple[str, str]]]:
    """LABEL_SPEAKER_INDEX.wav -> clips with label, speaker and the official split, and what was left out."""
    kept, skipped = [], []
    for item in source.items:
        match = FSDD.fullmatch(item.name.rsplit("/", 1)[-1])
        if match:
            label, speaker, index = map(printable, match.groups())
            kept.append(Clip(item.name, "test" if int(index) < FSDD_TEST else "train", item.name, {"label": label, "speaker": speaker}, item))
        else:
            skipped.append((item.name, "is not named LABEL_SPEAKER_INDEX"))
    return kept, skipped


def vctk(source: clips.Source, mic: str) -> tuple[list[Clip], list[tuple[str, str]]]:
    """.../p225/p225_001_mic1.flac -> clips grouped by utterance, and what was left out. Files without a microphone in their name are kept."""
    kept, skipped = [], []
    for item in source.items:
        match = VCTK.fullmatch(item.name)
        if not match:
            skipped.append((item.name, "is not named SPEAKER/SPEAKER_NUMBER or SPEAKER/SPEAKER_NUMBER_micN"))
        elif mic and match[3] not in (None, mic):
            skipped.append((item.name, f"not of microphone {mic}"))
        else:
            kept.append(Clip(item.name, "", match[2], {"speaker": printable(match[1])}, item))
    return kept, skipped


def hold_out(listed: list[Clip], names: list[str]) -> list[Clip]:
    """The clips with these speakers as test and the others as train, one group a speaker. Raises UserError."""
    known = {clip.marks["speaker"] for clip in listed}
    missing = [name for name in names if name not in known]
    if missing or not known - set(names):
        wrong = f"there is no speaker {missing[0]!r}" if missing else "nobody would be left to train on"
        raise UserError(f"--hold_out={','.join(names)}: {wrong}; the speakers are {', '.join(clips.sort_names(known))}.")
    return [clip._replace(given="test" if clip.marks["speaker"] in names else "train", group=clip.marks["speaker"]) for clip in listed]


def main() -> None:
    script.require(FLAGS, "source", "out")
    if FLAGS.mic and FLAGS.layout != "vctk":
        raise UserError("--mic goes with --layout=vctk.")
    source = clips.open_source(FLAGS.source, "speaker", FLAGS.workers)
    if FLAGS.layout == "speakers":
        listed, skipped = clips.by_folder(source, "speaker")
    else:
        listed, skipped = fsdd(source) if FLAGS.layout == "fsdd" else vctk(source, FLAGS.mic)
    if FLAGS.hold_out and listed:
        listed = hold_out(listed, FLAGS.hold_out)
    told = {"layout": FLAGS.layout, "hold_out": FLAGS.hold_out, "mic": FLAGS.mic, "pieces": FLAGS.pieces}
    clips.prepare(FLAGS, "data_prep.speech", source, listed, source.skipped + skipped, None if FLAGS.pieces else 1, told)


if __name__ == "__main__":
    script.run(main, FLAGS, __doc__)
