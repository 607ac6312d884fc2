"""One long take and the list of what was said in it -> labelled clips, ready for data_prep.speech.

  python -m data_prep.takes --take=evening.wav --prompts=prompts.txt --speaker=moni --out=recordings
  python -m data_prep.speech --source=recordings --out=datasets/moni --rate=8000

The list has one line a prompt, in spoken order: a label, and after it, if wished, the words to be read. The take is cut at its silences; its
utterances must be as many as the prompts. Clips are 16-bit WAV files of the take's rate named LABEL_SPEAKER_INDEX.wav, all brought up or down
by one gain so that the loudest sample has 0.99 of full scale; clips.tsv lists them. Nothing is written unless everything fits.
"""

import os
import pathlib
import re
import shutil

import numpy as np
import soundfile
from absl import flags

from data_prep import script, sounds
from data_prep.intake import printable
from vae_jax.config import UserError

FLAGS = flags.FlagValues()
flags.DEFINE_string("take", None, "sound file; WAV, AIFF, FLAC, Ogg or MP3", flag_values=FLAGS)
flags.DEFINE_string("prompts", None, "text file of what was said; LABEL or LABEL WORDS in each line", flag_values=FLAGS)
flags.DEFINE_string("speaker", None, "name of who speaks; part of the file names", flag_values=FLAGS)
flags.DEFINE_string("out", None, "folder to write; it must not be there yet, or be empty", flag_values=FLAGS)
flags.DEFINE_float("threshold", 15.0, "dB above the noise floor that an utterance reaches", 3.0, 60.0, flag_values=FLAGS)
flags.DEFINE_float("gap", 0.4, "seconds of silence that end an utterance; shorter ones are part of it", 0.05, 10.0, flag_values=FLAGS)

PEAK = 0.99
MAX_SECONDS = 3600  # the take is held in memory
HOP = 0.01  # s between frames of 20 ms
SHORTEST = 0.06  # s: clicks are shorter
ALONE = 0.2  # s from anything else; what is nearer and as short may be the release of a stop, as at the end of "eight"
MARGIN = 0.05  # s kept before and behind an utterance
FLOOR = -80.0  # dB of full scale: the noise floor of digital silence


def read_prompts(path: str) -> list[tuple[str, str]]:
    """(label, words) of each line that is not empty. Raises UserError naming the line."""
    try:
        lines = pathlib.Path(path).read_text("utf-8-sig").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"--prompts={printable(path)} is not a readable UTF-8 text ({getattr(error, 'strerror', None) or error}).") from None
    prompts = []
    for number, line in enumerate(lines, 1):
        label, _, words = line.strip().replace("\t", " ").partition(" ")
        if re.search(r"[_/\\]|^\.", label) or not label.isprintable():
            raise UserError(f"{printable(path)}, line {number}: the label {printable(label)!r} becomes part of a file name and must not hold _, / "
                            "or \\, nor begin with a point.")
        if label:
            prompts.append((label, words.strip()))
    if not prompts:
        raise UserError(f"{printable(path)} holds no prompts: write one line for each utterance.")
    return prompts


def levels(wave: np.ndarray, rate: int) -> np.ndarray:
    """Level of 20 ms frames every 10 ms in dB (0 = RMS of 1, never below FLOOR), without the take's constant offset: [n] -> [frames]."""
    hop = max(1, round(HOP * rate))
    power = np.square((wave - wave.mean())[:len(wave) // hop * hop].reshape(-1, hop)).mean(1)
    power = (power[:-1] + power[1:]) / 2
    return 10 * np.log10(np.maximum(power, 10 ** (FLOOR / 10)))


def utterances(level: np.ndarray, threshold: float, gap: float) -> tuple[list[tuple[int, int]], float]:
    """(first, last + 1) frame of each utterance, and the noise floor in dB, which is the level that a tenth of the frames stay below.

    An utterance is what lies above half the threshold over the floor, clicks left out and pauses shorter than `gap` seconds included, if it
    reaches the whole threshold and lasts 60 ms.
    """
    floor = float(np.percentile(level, 10)) if len(level) else FLOOR  # a take may be shorter than a frame
    above = np.concatenate([[False], level > floor + threshold / 2, [False]])
    edges = np.flatnonzero(above[1:] != above[:-1]).reshape(-1, 2)
    apart = np.concatenate([[np.inf], edges[1:, 0] - edges[:-1, 1], [np.inf]])  # frames to the one before, and after the last
    clicks = (edges[:, 1] - edges[:, 0] < SHORTEST / HOP) & (apart[:-1] > ALONE / HOP) & (apart[1:] > ALONE / HOP)
    runs = []
    for first, last in edges[~clicks].tolist():
        if runs and first - runs[-1][1] < gap / HOP:
            runs[-1] = (runs[-1][0], last)
        else:
            runs.append((first, last))
    return [(first, last) for first, last in runs if last - first >= SHORTEST / HOP and level[first:last].max() >= floor + threshold], floor


def cut(wave: np.ndarray, rate: int, count: int, threshold: float, gap: float, name: str) -> list[tuple[int, int]]:
    """(first, last + 1) sample of each of `count` utterances. Raises UserError where there are more or fewer, saying where they are."""
    hop = max(1, round(HOP * rate))
    found, floor = utterances(levels(wave, rate), threshold, gap)
    if len(found) != count:
        where = ", ".join(f"{first * hop / rate:.2f}-{(last + 1) * hop / rate:.2f}" for first, last in found)
        raise UserError(f"{name} holds {len(found)} utterances{f' (at {where} s)' if found else ''} more than {threshold:g} dB above its noise "
                        f"floor of {floor:.0f} dB, but the list has {count} prompts: mend the list, record again, or change --threshold or --gap.")
    margin, bounds = round(MARGIN * rate), []
    for i, (first, last) in enumerate(found):
        low = (found[i - 1][1] + 1) * hop if i else 0
        high = found[i + 1][0] * hop if i + 1 < count else len(wave)
        bounds.append((max(low, first * hop - margin), min(high, (last + 1) * hop + margin)))
    return bounds


def write(out: str, wave: np.ndarray, rate: int, bounds, prompts, speaker: str) -> float:
    """Writes the clips and clips.tsv, all or nothing; returns the gain. Raises UserError where the folder is taken or cannot be written."""
    target = pathlib.Path(os.path.abspath(out))
    if target.exists() and (not target.is_dir() or any(target.iterdir())):
        raise UserError(f"{printable(out)} exists and is not an empty folder: choose another --out.")
    gain = PEAK / max(float(np.abs(wave[first:last]).max()) for first, last in bounds)
    seen, rows = {}, ["file\tlabel\twords\tstart\tend"]
    folder = target.parent / f".{target.name}.preparing-{os.getpid()}"
    shutil.rmtree(folder, ignore_errors=True)  # of a dead process that had our number
    try:
        folder.mkdir(parents=True)
        for (first, last), (label, words) in zip(bounds, prompts, strict=True):
            seen[label] = seen.get(label, -1) + 1
            name = f"{label}_{speaker}_{seen[label]}.wav"
            values, clipped = sounds.quantise(wave[first:last] * np.float32(gain))
            assert not clipped
            soundfile.write(folder / name, values, rate, "PCM_16")
            rows.append(f"{name}\t{label}\t{words}\t{first / rate:.3f}\t{last / rate:.3f}")
        (folder / "clips.tsv").write_text("\n".join(rows) + "\n", encoding="utf-8")
        os.rename(folder, target)
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    return gain


def main() -> None:
    script.require(FLAGS, "take", "prompts", "speaker", "out")
    if re.search(r"[/\\]|^\.", FLAGS.speaker) or not FLAGS.speaker.isprintable():
        raise UserError(f"--speaker={printable(FLAGS.speaker)} becomes part of file names and must not hold / or \\, nor begin with a point.")
    prompts = read_prompts(FLAGS.prompts)
    wave, rate = sounds.read_wave(FLAGS.take, "take", longest=MAX_SECONDS)
    bounds = cut(wave, rate, len(prompts), FLAGS.threshold, FLAGS.gap, printable(FLAGS.take))
    gain = write(FLAGS.out, wave, rate, bounds, prompts, FLAGS.speaker)
    seconds = [(last - first) / rate for first, last in bounds]
    full = int(np.count_nonzero(np.abs(wave) >= 32767 / 32768))
    print(f"{FLAGS.out}: {len(prompts)} clips of {min(seconds):.2f} to {max(seconds):.2f} s at {rate} Hz, gain {20 * np.log10(gain):+.1f} dB"
          + (f"; {full:,} samples of the take are at full scale: it was recorded too loud" if full else ""))


if __name__ == "__main__":
    script.run(main, FLAGS, __doc__)
