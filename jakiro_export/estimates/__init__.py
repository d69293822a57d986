"""What an engine would need and do on a GPU that is not here: memory budgets, and times from a roofline. Estimates, all of it.

devices     what data sheets say of GPUs
work        the bytes and operations of one call, from a graph or from a model's sizes
budget      memory, by what takes it
estimate    milliseconds a round, tokens a second, the best number of nodes
"""
