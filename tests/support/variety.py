"""Settings of sampling that differ in everything."""

import numpy as np

from jakiro_runtime import Sampling

VARIETY = [
    Sampling(temperature=0.3, seed=1),
    Sampling(temperature=0.7, top_p=0.9, seed=2),
    Sampling(temperature=1.0, seed=3),
    Sampling(temperature=1.5, top_k=20, seed=4),
    Sampling(temperature=1.0, min_p=0.1, repetition_penalty=1.3, seed=5),
    Sampling(temperature=0.9, logit_bias={7: 4.0, 9: -5.0}, top_k=50, top_p=0.95, seed=6),
    Sampling(repetition_penalty=1.2),
    Sampling(temperature=0.8, processors=(lambda prefix, scores: scores - 0.5 * (np.arange(len(scores)) == prefix[-1]),)),
]
