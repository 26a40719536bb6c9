#!/usr/bin/env python3
"""Runs the peers of the kernel benchmarks and writes one JSON file. Each option may be given several
times, its fields divided by colons, lists by commas:

    run.py --decode llama-3-8b:8192,131072:1,8 --prefill llama-3-8b:32768:0 \\
           --linear llama-3-8b:1,8:2048 --json peers.json
"""

import argparse

import common
import decode
import linear
import prefill


def integers(text):
    return [int(part) for part in text.split(",") if part]


def main():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--decode", action="append", default=[], metavar="SHAPE:LENGTHS:BATCHES")
    parser.add_argument("--prefill", action="append", default=[], metavar="SHAPE:LENGTHS:LAST_ROWS")
    parser.add_argument(
        "--linear", action="append", default=[], metavar="SHAPE:DECODE_ROWS:PREFILL_ROWS"
    )
    parser.add_argument("--runs", type=int, default=7)
    parser.add_argument("--json", required=True)
    arguments = parser.parse_args()
    measured = common.ceilings()
    rows = []

    def add(more):  # written after every part: what is there stays, whatever comes later
        rows.extend(more)
        common.write(arguments.json, rows, measured)

    for part in arguments.decode:
        shape, lengths, batches = part.split(":")
        add(decode.rows(shape, integers(lengths), integers(batches), arguments.runs))
    for part in arguments.prefill:
        shape, lengths, last = part.split(":")
        add(prefill.rows(shape, integers(lengths), int(last), min(arguments.runs, 3)))
    for part in arguments.linear:
        shape, decode_rows, prefill_rows = part.split(":")
        add(linear.rows(shape, integers(decode_rows), integers(prefill_rows), arguments.runs))


if __name__ == "__main__":
    main()
