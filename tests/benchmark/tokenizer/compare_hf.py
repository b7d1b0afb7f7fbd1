#!/usr/bin/env python3
"""Banyan's tokenizer beside Hugging Face tokenizers: same text, same file, one thread each.

    compare_hf.py --tokenizer DIR [--bench build/release/bin/tokenizer_bench] [--megabytes 8]

Installs `tokenizers` from PyPI into a virtual environment beside the benchmark on first use. The
text is English made from a fixed vocabulary and a fixed seed. Prints MB/s of both for one big text
and for texts of about 2 KB, and the load times; fails if the numbers of tokens differ or if Banyan
is slower at encoding.
"""
import argparse
import json
import os
import pathlib
import random
import subprocess
import sys
import tempfile
import time

WORDS = """the of and to in is that it was for on are as with his they be at one have this from or had by
word but what some we can out other were all there when up use your how said each she which do their time if
will way about many then them write would like so these her long make thing see him two has look more day could
go come did number sound no most people my over know water than call first who may down side been now find any
new work part take get place made live where after back little only round man year came show every good me give
our under name very through just form sentence great think say help low line differ turn cause much mean before
move right boy old too same tell does set three want air well also play small end put home read hand port large
spell add even land here must big high such follow act why ask men change went light kind off need house picture
try us again animal point mother world near build self earth father head stand own page should country found
answer school grow study still learn plant cover food sun four between state keep eye never last let thought city
tree cross farm hard start might story saw far sea draw left late run while press close night real life few north
government development international community information university population temperature performance
understanding environment particularly agricultural responsibility characteristics relationship manufacturing
photosynthesis constitution administration Mediterranean archaeological infrastructure""".split()


def make_text(num_bytes: int) -> str:
    rng = random.Random(20240607)
    weights = [1.0 / (i + 3) for i in range(len(WORDS))]
    parts, size = [], 0
    while size < num_bytes:
        words = rng.choices(WORDS, weights, k=rng.randint(4, 22))
        if rng.random() < 0.1:
            words.insert(rng.randrange(len(words)), str(rng.randint(0, 2030)))
        if rng.random() < 0.15:
            words[rng.randrange(len(words))] = rng.choice(["don't", "it's", "they're", "I'll"])
        words[0] = words[0].capitalize()
        for i in range(5, len(words) - 1, 7):
            words[i] += ","
        sentence = " ".join(words) + rng.choice([". ", ". ", "? ", "! ", ".\n\n"])
        parts.append(sentence)
        size += len(sentence)
    return "".join(parts)


def use_venv(directory: pathlib.Path) -> None:
    python = directory / "bin" / "python"
    if not python.exists():
        subprocess.run([sys.executable, "-m", "venv", str(directory)], check=True)
    probe = subprocess.run([str(python), "-c", "import tokenizers"], capture_output=True)
    if probe.returncode != 0:
        subprocess.run([str(python), "-m", "pip", "install", "-q", "tokenizers"], check=True)
    os.execv(str(python), [str(python), *sys.argv])


def median(values):
    return sorted(values)[len(values) // 2]


def timed(work, repeats):
    times = []
    for _ in range(repeats):
        start = time.perf_counter()
        result = work()
        times.append(time.perf_counter() - start)
    return median(times), result


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tokenizer", required=True)
    parser.add_argument("--bench", default="build/release/bin/tokenizer_bench")
    parser.add_argument("--venv", default="build/tokenizer-venv")
    parser.add_argument("--megabytes", type=float, default=8)
    parser.add_argument("--repeats", type=int, default=5)
    args = parser.parse_args()
    os.environ["TOKENIZERS_PARALLELISM"] = "false"
    os.environ["RAYON_NUM_THREADS"] = "1"
    try:
        import tokenizers
    except ImportError:
        use_venv(pathlib.Path(args.venv))
    text = make_text(int(args.megabytes * 1e6))
    with tempfile.TemporaryDirectory() as scratch:
        path = os.path.join(scratch, "english.txt")
        with open(path, "w", encoding="utf-8", newline="") as file:
            file.write(text)
        command = [args.bench, "--tokenizer", args.tokenizer, "--text", path, "--repeats", str(args.repeats)]
        ours = json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)
    # The same texts as tokenizer_bench makes: at least 2048 bytes, up to the next space.
    chunks, position = [], 0
    while position < len(text):
        space = text.find(" ", min(position + 2048, len(text)))
        end = len(text) if space < 0 else space
        chunks.append(text[position:end])
        position = end
    file_name = os.path.join(args.tokenizer, "tokenizer.json")
    load_s, hf = timed(lambda: tokenizers.Tokenizer.from_file(file_name), 3)
    one_s, encoding = timed(lambda: hf.encode(text, add_special_tokens=False), args.repeats)
    batch_s, _ = timed(lambda: hf.encode_batch(chunks, add_special_tokens=False), args.repeats)
    fast = getattr(hf, "encode_batch_fast", None)
    if fast is not None:
        batch_s = min(batch_s, timed(lambda: fast(chunks, add_special_tokens=False), args.repeats)[0])
    size = len(text) / 1e6
    theirs = {"load_s": load_s, "one_text_mb_s": size / one_s, "batch_mb_s": size / batch_s}
    print(f"text: {size:.1f} MB, {ours['tokens']} tokens, {len(chunks)} texts in the batch")
    print(f"{'':24}{'banyan':>12}{'tokenizers ' + tokenizers.__version__:>22}{'ratio':>8}")
    for key, label in (("one_text_mb_s", "one text, MB/s"), ("batch_mb_s", "texts of 2 KB, MB/s")):
        print(f"{label:24}{ours[key]:12.2f}{theirs[key]:22.2f}{ours[key] / theirs[key]:8.1f}")
    print(f"{'load, s':24}{ours['load_s']:12.3f}{load_s:22.3f}{load_s / ours['load_s']:8.1f}")
    if len(encoding.ids) != ours["tokens"]:
        print(f"tokens differ: {ours['tokens']} and {len(encoding.ids)}", file=sys.stderr)
        return 1
    slower = [key for key in ("one_text_mb_s", "batch_mb_s") if ours[key] < theirs[key]]
    return 1 if slower else 0


if __name__ == "__main__":
    sys.exit(main())
