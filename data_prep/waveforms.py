"""Recordings in, TFRecord folder of waveforms out: what models of the raw wave (RAVE) are trained on.

  python -m data_prep.waveforms --source=recordings --out=datasets/mine
  python -m data_prep.waveforms --source=recordings --out=datasets/mine --rate=44100 --channels=2 --split=train:0.8,validation:0.1,test:0.1
  python -m data_prep.waveforms --source=VCTK-Corpus-0.92 --out=datasets/vctk --layout=vctk --mic=1 --by=speaker

Layouts: `plain`, any tree of sound files, where the folders of the first level are the classes if there are several and no file lies beside
them; `vctk`, .../pNNN/pNNN_nnn_micN.flac or .../pNNN/pNNN_nnn.wav, with their speakers. A source is a folder, an archive (of files up to 256 MB)
or `tfds:NAME`. Without --split it keeps its own splits (train and test folders), or is divided 90 to 10, in seconds: by recording, of VCTK by
utterance, both microphones together, or by speaker. Each class has its share of every split where it has recordings enough.

A recording is brought to --rate and --channels once and cut into records of at most --seconds. Nothing is filled up: a short recording, and the
end of a long one, is a short record; training cuts its crops from records (config.data.crop). Every file found is kept or is in manifest.json with
the reason why not: damaged, empty, not finite, silent, or shorter than 10 ms. The same source, options and seed give the same bytes.
"""

import numpy as np
from absl import flags

from data_prep import clips, script, sounds, speech, splits
from data_prep.clips import Clip
from data_prep.intake import printable
from vae_jax.config import UserError

FLAGS = flags.FlagValues()
clips.define_flags(FLAGS, rate=48_000)
FLAGS.set_default("seconds", float(clips.MAX_SECONDS))
FLAGS.set_default("split", "train:0.9,test:0.1")
flags.DEFINE_integer("channels", 1, "1 = the mean of a file's channels, 2 = stereo", 1, 2, flag_values=FLAGS)
flags.DEFINE_enum("layout", "plain", ["plain", "vctk"], "how folders and names are read", flag_values=FLAGS)
flags.DEFINE_enum("mic", "", ["", "1", "2"], "vctk: the microphone to keep; '' = both", flag_values=FLAGS)
flags.DEFINE_enum("by", "utterance", ["utterance", "speaker"], "vctk: what is divided into splits", flag_values=FLAGS)


def plain(source: clips.Source) -> list[Clip]:
    """Every file as a recording, with the label of its folder where all lie in one of several."""
    given, parts = splits.read_folders([item.name for item in source.items], source.is_archive)
    folders = {p[0] if len(p) > 1 else "" for p in parts}
    labelled = len(folders) > 1 and "" not in folders
    return [Clip(item.name, split, item.name, {"label": printable(p[0])} if labelled else {}, item)
            for item, split, p in zip(source.items, given, parts)]


def shared(listed: list[Clip], field: str, count: int) -> str:
    """`field` if each of its classes can be divided into `count` splits on its own, with groups enough that lie in no other class; else ''."""
    groups = {}
    for clip in listed:
        groups.setdefault(clip.marks.get(field), set()).add(clip.group)
    apart = len(set().union(*groups.values())) == sum(map(len, groups.values()))
    return field if apart and None not in groups and all(len(of) >= count for of in groups.values()) else ""


def main() -> None:
    script.require(FLAGS, "source", "out")
    if (FLAGS.mic or FLAGS["by"].present) and FLAGS.layout != "vctk":
        raise UserError(f"--{'mic' if FLAGS.mic else 'by'} goes with --layout=vctk.")
    field = "speaker" if FLAGS.layout == "vctk" else "label"
    source = clips.open_source(FLAGS.source, field, FLAGS.workers)
    listed, skipped = speech.vctk(source, FLAGS.mic) if FLAGS.layout == "vctk" else (plain(source), [])
    if FLAGS.layout == "vctk" and FLAGS.by == "speaker":
        listed = [clip._replace(group=clip.marks["speaker"]) for clip in listed]
    if any(clip.given for clip in listed) and not FLAGS["split"].present:
        FLAGS.split = ""
    listed = clips.regroup(listed, FLAGS.group)
    told = {"layout": FLAGS.layout, "channels": FLAGS.channels, "mic": FLAGS.mic, "by": FLAGS.by if FLAGS.layout == "vctk" else "recording",
            "left_out": f"damaged, empty or not finite; shorter than {sounds.MIN_SECONDS:g} s; never above {20 * np.log10(sounds.SILENT):.0f} dB"}
    by = shared(listed, field, len(splits.parse_fractions(FLAGS.split)))
    lengths = clips.durations(source, listed)  # bytes would not do: a quiet piece of an Ogg takes a quarter of a loud one's
    clips.prepare(FLAGS, "data_prep.waveforms", source, listed, source.skipped + skipped, None, told, by, lengths, FLAGS.channels, fill=False)


if __name__ == "__main__":
    script.run(main, FLAGS, __doc__)
