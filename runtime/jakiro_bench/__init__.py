"""`jakiro-bench`: what speculation is worth on this machine, in a form that others can check.

prompts.py      the prompts file
contenders.py   what is measured: our engine with and without speculation
peers.py        ... and other runtimes, where they are installed
measure.py      the loop: every turn to every contender, taking turns at going first
watch.py        which of the drafted candidates the target took
cost.py         one target pass by rows and by context
profile.py      where the time outside the graphs goes
figures.py      medians, spreads and pooled rates
machine.py      what it ran on
report.py       the JSON object; table.py and page.py show it, svg.py draws
"""
