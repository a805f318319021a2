"""Run `vllm bench serve` for each list of arguments on stdin (JSON), and print its results as JSON lines.

vLLM's own command line asks for the metadata of a distribution named vllm, which the CPU build is not; the benchmark
behind it is a module that works by itself. The folder that is given gets a tokenizer whose tokens are words, as the
simulated engine counts them.
"""

from __future__ import annotations

import argparse
import json
import sys

from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import WhitespaceSplit
from transformers import PreTrainedTokenizerFast
from vllm.benchmarks.serve import add_cli_args, main


def write_tokenizer(folder: str) -> None:
    """Save one for which `word7 word8` is two tokens."""
    words = {"<unk>": 0, **{f"word{i}": i + 1 for i in range(500)}}
    tokenizer = Tokenizer(WordLevel(words, unk_token="<unk>"))
    tokenizer.pre_tokenizer = WhitespaceSplit()
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, unk_token="<unk>").save_pretrained(folder)


def run(arguments: list[str]) -> dict[str, object]:
    """One benchmark."""
    parser = argparse.ArgumentParser()
    add_cli_args(parser)
    result = main(parser.parse_args(arguments))
    return {k: v for k, v in result.items() if isinstance(v, int | float | str)}


if __name__ == "__main__":
    write_tokenizer(sys.argv[1])
    for given in json.load(sys.stdin):
        sys.stdout.write("\nRESULT " + json.dumps(run(given)) + "\n")
        sys.stdout.flush()
