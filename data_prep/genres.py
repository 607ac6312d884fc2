"""Music in, TFRecord folder out: long tracks cut into short pieces, with their genre.

  python -m data_prep.genres --source=music --out=datasets/genres --split=train:0.7,validation:0.1,test:0.2
  python -m data_prep.genres --source=mixes.tar --out=datasets/mixes --seconds=2 --rate=44100 --group='^[^/]+/(.+?)__' --split=train:0.8,test:0.2

A source is a folder with one folder a genre (itself in train, test or validation folders where the source has splits), an archive of such
folders (of files up to 256 MB), or `tfds:NAME`. Tracks may be hours long; pieces of one track never lie in two splits, and each genre is divided
on its own, so that it has its share of every split, by the files' bytes. The last piece of a track is filled up with zeros: `valid` counts
its own samples, `start` says where it lay.
Every file found is kept or is in manifest.json with the reason why not. The same source, options and seed give the same bytes.
"""

from absl import flags

from data_prep import clips, script

FLAGS = flags.FlagValues()
clips.define_flags(FLAGS, rate=22050)


def main() -> None:
    script.require(FLAGS, "source", "out")
    source = clips.open_source(FLAGS.source, "label", FLAGS.workers)
    listed, skipped = clips.by_folder(source, "label")
    clips.prepare(FLAGS, "data_prep.genres", source, listed, source.skipped + skipped, None, {}, by="label")


if __name__ == "__main__":
    script.run(main, FLAGS, __doc__)
