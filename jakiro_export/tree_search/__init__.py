"""Tree search of `jakiro-export --tree auto`: the draft tree that decodes fastest on this machine.

texts.py       calibration texts: the target's answers to prompts of the package, and its features of them
traces.py      the trees that a draft phase proposes along those answers, compared with what the target said
simulate.py    offline decoding of the answers, round by round, from the traces and the measured costs
costs.py       what passes, drafting and the host take on this machine, and what decoding really comes to
shapes.py      the shapes that are searched, and what the user fixed of them
search.py      coordinate search over depth and top_k; nodes follow from them
static.py      trees along fixed paths
choose.py      all of it in order, repeated where the machine's speed changed meanwhile
"""
