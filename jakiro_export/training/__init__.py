"""Training of draft heads on a target's own text: `jakiro-train`, and `python -m jakiro_export.training.compare`.

cli.py              jakiro-train: text, training, a published head
compare.py          heads that differ in one thing each; variants.py says which, table.py shows what each was worth
sources.py          the text to train on: from files, or written by the target
conversations.py    the file format
generation.py       the target in conversation with itself, many conversations at once
openings.py         first words of questions
batched_target.py   one token of each of many sequences through the target's graph
features.py         the target's features of a text
batches.py          conversations of similar length together
columns.py          the part of the draft vocabulary that a step looks at
model.py            the head with its parameters, and its loss
trainer.py          the training loop; settings.py its settings
heldout.py          accuracy on held-out text
init_checkpoint.py  a published head to begin with
sizes.py            families, what a head takes over from its target, its config.json
publish.py          the finished head
console.py          progress, and one process at a time
"""
