"""`jakiro-export --tree auto`: which tree is the fastest on this machine.

texts.py      what the target answers to prompts of the package, and its features along the way
trees.py      the trees that a draft phase grows at every place of those answers, held against what the target said there
simulate.py   decoding of those answers again, on paper: tokens, and milliseconds by the measured costs
choose.py     the search over depth, top_k and nodes
"""
