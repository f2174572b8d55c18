"""What each stage is to learn, what of it is drawn, and what is said about it."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Panel:
    """One pair of axes: a metric while training and on the held-out rows, or several metrics of the held-out rows.

    `level` is a line that means something: chance, or a target, with what it means.
    """

    label: str
    metrics: tuple[str, ...]
    level: tuple[float, str] | None = None
    share: bool = False


@dataclass(frozen=True)
class Lesson:
    """One section: what it shows, of which metrics, and where they are known to begin.

    `start` holds the metrics before the first step where mathematics says them; None: they are measured by a run whose
    only step has a learning rate of 0.
    """

    title: str
    data: str
    text: str
    panels: tuple[Panel, ...]
    table: tuple[tuple[str, str], ...]
    start: dict[str, float] | None = None


LN2 = 0.6931471805599453
CHANCE = (0.5, "chance")
LESSONS = {
    "sft": Lesson(
        "Supervised fine-tuning: the held-out loss falls",
        "alpaca_en_demo.json",
        "The model was tuned for chat before, so there is little left to learn from general instructions. The loss on "
        "rows that it never saw still falls at once, and by most of what it will in the first steps.",
        (Panel("Loss per supervised token, nats", ("loss",)),),
        (("loss", "loss, nats per token"),),
    ),
    "pretrain": Lesson(
        "Pre-training: perplexity falls",
        "wiki_demo.txt",
        "Documents end to end in blocks of 256 tokens. The held-out blocks come from the same encyclopaedia articles "
        "as the others, so this is how well it learns these texts and their style, not new facts.",
        (Panel("Perplexity", ("perplexity",)),),
        (("perplexity", "perplexity"), ("loss", "loss, nats per token")),
    ),
    "reward": Lesson(
        "Reward model: better than chance on pairs it never saw",
        "dpo_en_demo.json",
        "It starts with no preference at all, since its value head starts with zeros. The pairs are few and noisy, "
        "many answers cut: read the accuracy with its interval.",
        (
            Panel("Accuracy on pairs", ("accuracy",), CHANCE, share=True),
            Panel("Reward margin, chosen less rejected", ("margin",)),
        ),
        (("accuracy", "accuracy"), ("margin", "reward margin"), ("loss", "loss, nats per pair")),
        {"accuracy": 0.5, "margin": 0.0, "loss": LN2},
    ),
    "dpo": Lesson(
        "DPO: the margin rises, on pairs it never saw too",
        "dpo_en_demo.json",
        "The policy starts as its own reference, so both rewards start at 0 and the loss at ln 2. On training pairs "
        "margin and accuracy rise from the second pass; on the others the margin rises slowly and the loss falls, "
        "while the interval of the accuracy still holds chance: 225 noisy pairs teach taste only so far.",
        (
            Panel("Reward margin, chosen less rejected", ("margin",)),
            Panel("Accuracy on pairs", ("accuracy",), CHANCE, share=True),
        ),
        (("margin", "reward margin"), ("accuracy", "accuracy"), ("loss", "loss, nats per pair")),
        {"accuracy": 0.5, "margin": 0.0, "loss": LN2},
    ),
    "kto": Lesson(
        "KTO: good answers and bad ones part",
        "kto_en_demo.json",
        "No answer has a partner here: each is only called good or bad, by people who disagree. What parts is the mean "
        "reward of the two classes; the margin is their distance.",
        (
            Panel("Mean reward of held-out answers", ("reward_good", "reward_bad")),
            Panel("Margin, good less bad", ("margin",)),
        ),
        (("margin", "reward margin"), ("reward_good", "reward, good"), ("reward_bad", "reward, bad"), ("loss", "loss")),
        {"reward_good": 0.0, "reward_bad": 0.0, "margin": 0.0, "loss": 0.5},
    ),
    "ppo": Lesson(
        "PPO: a programmed reward rises, and the policy stays near where it began",
        "alpaca_en_demo.json",
        "The reward is a plugin of a dozen lines in a file (`docs/learning/plain.py`): the share of an answer's words "
        "that have at most four letters. Held out are prompts that were never answered in training. Adaptive control "
        "raises the price of KL where it passes its target: on unseen prompts it stays below; the last rollout in "
        "training is just above.",
        (
            Panel("Mean reward of answers", ("reward",)),
            Panel("KL from the start, nats per answer", ("kl",), (4.0, "target")),
        ),
        (("reward", "mean reward"), ("kl", "KL, nats per answer")),
    ),
}
