#!/usr/bin/env python3
"""Runs the peers of the kernel benchmarks and writes one JSON file. Each option may be given several
times, its fields divided by colons, lists by commas; parts run in the order of the options:

    run.py --decode llama-3-8b:8192,131072:1,8 --prefill llama-3-8b:32768:0 \\
           --linear llama-3-8b:1,8:2048 --json peers.json
"""

import argparse

import common
import decode
import linear
import prefill


OPTIONS = {
    "decode": "SHAPE:LENGTHS:BATCHES",
    "prefill": "SHAPE:LENGTHS:LAST_ROWS",
    "linear": "SHAPE:DECODE_ROWS:PREFILL_ROWS",
}


def integers(text):
    return [int(part) for part in text.split(",") if part]


def main():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    for name, fields in OPTIONS.items():
        parser.add_argument(
            f"--{name}", metavar=fields, dest="parts", action="append",
            type=lambda text, name=name: (name, text.split(":")),
        )
    parser.add_argument("--runs", type=int, default=7)
    parser.add_argument("--json", required=True)
    arguments = parser.parse_args()
    measured = common.ceilings()
    rows = []
    for name, fields in arguments.parts or []:
        if name == "decode":
            shape, lengths, batches = fields
            rows += decode.rows(shape, integers(lengths), integers(batches), arguments.runs)
        elif name == "prefill":
            shape, lengths, last = fields
            rows += prefill.rows(shape, integers(lengths), int(last), min(arguments.runs, 3))
        else:
            shape, some, many = fields
            rows += linear.rows(shape, integers(some), integers(many), arguments.runs)
        # After every part, so that what is there stays, whatever comes later.
        common.write(arguments.json, rows, measured)


if __name__ == "__main__":
    main()
