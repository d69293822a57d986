"""`jakiro-bench`: speed and acceptance of an engine, in a report that others can check.

cli.py           options; reads the prompts, writes the reports
benchmark.py     one benchmark run, from prompts to the report
numbers.py       lists of whole numbers on a command line
prompts.py       the prompts file
runners.py       the runner protocol, and an engine's session as a runner
baselines.py     other runtimes as runners, where they are installed
measure.py       the measuring loop: every turn to every runner, each going first in turn
recording.py     accepted draft nodes by rank, recorded from outside the decoding loop
batches.py       throughput by batch size, as a server decodes
host_profile.py  host time of a decoding round, function by function
metrics.py       pooled rates and bootstrap intervals
report.py        the JSON report; table.py and page.py show it, svg.py draws
"""
