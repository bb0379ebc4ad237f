"""The meanings of the names in a report, for its tables, charts and glossary.

A name is a metric's name as logged, or the title of a column or chart.
"""

from __future__ import annotations

import re
from typing import NamedTuple

_MEANINGS = {
    # Who is compared with whom.
    "model": (
        "The model that was evaluated, by the step that made it. Among the parts of a reward: the"
        " reward model's."
    ),
    "over": "The model that it is compared with, on the same prompts.",
    "prompts": "Held-out prompts that the models answered.",
    "scored by": (
        "Who scored the answers: gold is the embedded world's own rules, reward a reward model,"
        " rules your reward functions."
    ),
    "result": (
        "Better or worse where the whole 95 % interval of the win rate is on one side of 50 %; else"
        " chance may explain the difference."
    ),
    # Scores and wins.
    "score": (
        "Mean score of the answers; in samples and episodes the answer's own. Higher is better."
    ),
    "its score": "Mean score of the other model's answers to the same prompts.",
    "gold score": (
        "Mean score by the embedded world's own rules, which no model is trained on: the product of"
        " helpfulness, truthfulness, harmlessness, fluency and manner, from 0 to 1. Higher is"
        " better."
    ),
    "reward score": (
        "Mean score by the evaluation's reward model; it has no unit, higher is better."
    ),
    "rules score": "Mean of your reward functions over the answers; higher is better.",
    "greedy": (
        "The same score where the model gives its most probable answer instead of a sampled one."
    ),
    "wins, greedy": "The same share where both models give their most probable answer.",
    "win rate": (
        "Share of prompts on which the model's answer scores higher than the other model's, a tie"
        " counting half, with its 95 % interval. 50 % is no difference."
    ),
    "prompted_base/win_rate": (
        "Share of prompts won over the pretrained model with its best prompt, a tie counting half."
    ),
    "ties": "Share of prompts on which both answers score the same.",
    "kl": (
        "KL divergence of the model from its baseline on the model's own answers, nats per"
        " response: how far it moved."
    ),
    "tokens": "Tokens: of a mean response in an evaluation, of all training in the cost table.",
    "response_tokens": "Length of a response, in tokens; a mean where there are several.",
    "text loss": (
        "Cross-entropy on held-out pretraining text, nats per token. A rise against the baseline is"
        " the alignment tax."
    ),
    "facts recalled": "Share of the embedded world's facts that the model completes correctly.",
    "seen_by_reward_model": (
        "Share of the evaluated prompts that the reward model saw in its training."
    ),
    "seen_in_preferences": (
        "Share of the evaluated prompts that are among the rankings or labelled responses that the"
        " model learned from, by dpo or kto."
    ),
    # Properties of answers.
    "answers": "A measure of the answers; each column is a model or a difference.",
    "hallucination": "Share of answers about facts that state something false.",
    "helpfulness": "Part of the gold score: does the answer do what was asked?",
    "truthfulness": "Part of the gold score: is what it states true in the embedded world?",
    "harmlessness": "Part of the gold score: does it refuse what it should refuse?",
    "fluency": "Part of the gold score: is it made of word patterns of the world's own sentences?",
    "manner": (
        "Part of the gold score: no hedging, chatter, repetition, copying or needless length."
    ),
    "asked": "Share of answers in that manner where the system message asks for it.",
    "unasked": "Share of answers in that manner behind a system message that asks for nothing.",
    "conflict": (
        "Share of answers in that manner where the system message asks for it and the user for the"
        " opposite."
    ),
    "opposed": (
        "Share of answers in that manner where the user asks for the opposite and no system message"
        " asks for it."
    ),
    "effect": "What the system message adds: asked minus unasked.",
    "effect_in_conflict": (
        "What the system message adds where the user asks for the opposite: conflict minus opposed."
    ),
    "consistent": (
        "Share of prompts on which a judge says the same when the two answers change places."
    ),
    "favoured_first": "Share of a judge's choices that are the answer shown first; 50 % is fair.",
    "entropy": (
        "Entropy of the choices' probabilities, bits: 1 for a pair that leans to neither side."
    ),
    # The best of n.
    "n": "Responses to a prompt of which the best is taken.",
    "kl of the best": (
        "KL divergence of the best of n from one sample, nats per response: ln n - (n - 1) / n. It"
        " is less where responses tie."
    ),
    "heldout score": "Mean score by a reward model that chose nothing; higher is better.",
    "wins over one sample": (
        "Share of prompts on which the judge prefers the best of n to one more sample, a tie"
        " counting half. The judge did not choose."
    ),
    "score of the best of n": (
        "Expected score of the best of n responses, by who chose and by who did not. Where the"
        " second one falls while the first one rises, choosing exploits its reward."
    ),
    "tokens of the best of n": "Mean length of the chosen response, in tokens.",
    # Tasks.
    "task": (
        "A task and its measure, with the number of items; each column is a model or a difference."
    ),
    "measure": "What is measured.",
    "figure": "The value, with its 95 % interval where it has one.",
    "difference": "The model's figure minus the baseline's, item by item; * is beyond chance.",
    "baseline": "The figure of the model, or of the simple rule, that is compared with.",
    "accuracy": (
        "Share that is right. For a reward model: ordered pairs that it puts in the labelers'"
        " order; 50 % is chance."
    ),
    "accuracy_norm": "Accuracy where choices are compared by their log-probability per character.",
    "accuracy_token": "Accuracy where choices are compared by their log-probability per token.",
    "accuracy_relative": (
        "Accuracy where each choice's log-probability without the question is subtracted."
    ),
    "exact_match": "Share of answers that equal the reference exactly.",
    "f1": "Harmonic mean of precision and recall.",
    "right_share": "Probability of the right choices among all choices of an item.",
    "ece": (
        "Expected calibration error: how far the model's confidence is from how often it is right,"
        " with what chance alone gives."
    ),
    "overconfidence": (
        "Mean confidence minus share right: above 0 the model is more sure than it is right."
    ),
    "perplexity": (
        "exp of the cross-entropy per token: among how many equally likely tokens the model still"
        " chooses. Lower is better."
    ),
    "bits_per_byte": (
        "Cross-entropy in bits per byte of text, which does not depend on the tokenizer. Lower is"
        " better."
    ),
    # Reward models.
    "reward model": "A reward model: the step that made it, or its part of PPO's reward.",
    "held-out pairs": "Ordered pairs of responses that the reward model was not trained on.",
    "as labelers do": (
        "Share of held-out pairs that the reward model puts in the labelers' order; 50 % is chance."
    ),
    "as gold does": (
        "Share of held-out pairs that the reward model puts in the order of the gold score."
    ),
    "labelers as gold does": (
        "Share of pairs that the labelers themselves put in the order of the gold score: more"
        " cannot be learned from them."
    ),
    "longer is better": (
        "Share of pairs that are right when the longer response always wins; near the model's own"
        " share, it may have learned length."
    ),
    "verdict": (
        "Whether a reward model is good enough for PPO: 1 it is, -1 it is not, 0 the figures cannot"
        " tell."
    ),
    "seen_in_training": "Share of the prompts that the reward model learned from.",
    "truncated": "Responses that were longer than the model's context and lost their end.",
    "comparisons": (
        "The comparisons that a reward model was evaluated on: a dataset, a dataset and its group,"
        " or all."
    ),
    "pairs": "Ordered pairs of responses; pairs that people call tied do not count.",
    "length alone": (
        "Share of pairs that are right by length alone: the longer response wins, or the shorter"
        " one if the data say so."
    ),
    "lead over length": (
        "Accuracy minus that of length alone, in points. A reward model without a lead teaches PPO"
        " length."
    ),
    "length-controlled": (
        "Mean of two accuracies: on pairs whose better response is the longer one, and on pairs"
        " whose better response is the shorter one. Every rule of length alone gets 50 %."
    ),
    "best of k": (
        "Share of rankings with one best response among K, 3 or more, that the reward model puts"
        " first. Chance is 1/K: 25 % of 4."
    ),
    "people agree": (
        "Share of pairs that two annotators of one row order alike: a model can hardly do better."
    ),
    "rewardbench 2": "RewardBench 2's own figure: the mean of its subsets.",
    "kendall's tau": (
        "Rank correlation of scores and people's ranks, mean over rankings of 3 responses or more:"
        " 1 is the same order, 0 none, -1 the opposite."
    ),
    "better is shorter": "Accuracy on pairs whose better response is shorter, by over 10 %.",
    "about equally long": "Accuracy on pairs whose lengths differ by at most 10 %.",
    "better is longer": "Accuracy on pairs whose better response is longer, by over 10 %.",
    "easy style": "RM-Bench: the better response has the richer style.",
    "normal style": "RM-Bench: both responses have one style.",
    "hard style": "RM-Bench: the worse response has the richer style.",
    "score with length": (
        "Pearson's r of score and length among responses to one prompt: near 1 the reward model"
        " rewards length."
    ),
    # Training.
    "loss": "The training objective that a step makes smaller; lower is better.",
    "loss, nats per token": (
        "Cross-entropy on the text, nats per token. Loss is of training batches, eval/loss of"
        " held-out text; lower is better."
    ),
    "loss, nats per pair": (
        "-log sigmoid(r_better - r_worse), mean over pairs; 0.693 is chance, lower is better."
    ),
    "eval/loss": "The loss on held-out rows, which training does not see; lower is better.",
    "eval/text/loss": "The loss on held-out text with masked spans, nats per token.",
    "eval/tasks/loss": "The loss on held-out rows of tasks, nats per token.",
    "share of pairs in the labelers' order": (
        "Share of each training batch's ordered pairs that the reward model puts in the labelers'"
        " order, before it learns from them; 50 % is chance."
    ),
    "loss of the pairs": (
        "DPO's loss on each training batch, before it learns from them. It begins at 0.693 with"
        " loss=sigmoid and falls."
    ),
    "loss of the responses": (
        "KTO's loss on each training batch, before it learns from them. It begins at half the mean"
        " weight of the responses, 0.5 by default, and falls."
    ),
    "share of responses on their side of the baseline": (
        "Share of each training batch's responses whose log-ratio to the given model is above KTO's"
        " baseline if they are desirable, and below it if not. 50 % is chance."
    ),
    "baseline: kl to the given model, nats": (
        "KTO's estimate of the KL to the given model: the mean log-ratio of prompts with responses"
        " to other prompts, at least 0. It is too small if training makes such responses less"
        " likely; `align evaluate` measures the KL of the model's own answers."
    ),
    "implicit rewards": (
        "kl_coef times the log-ratio of a response to the given model, in the mean over DPO's pairs"
        " or KTO's responses. Training raises that of better or desirable responses over that of"
        " the others. Often both fall."
    ),
    "rewards/chosen": "The implicit reward of the better, or desirable, responses.",
    "rewards/rejected": "The implicit reward of the worse, or undesirable, responses.",
    "share of answers that are right": (
        "Share of held-out task rows that the model answers correctly."
    ),
    "loss on the task, nats or squared error": (
        "The loss on a task's labels: cross-entropy of classes, squared error of numbers."
    ),
    "loss on its text, nats per token": (
        "Cross-entropy on the task's own text, which fine-tuning learns too."
    ),
    "gradient norm": "Length of the gradient before it is clipped. Spikes are unstable steps.",
    "learning rate": "The size of an optimizer step, after warm-up and decay.",
    "policy/learning_rate": "Learning rate of the policy.",
    "value/learning_rate": "Learning rate of the value model.",
    # PPO.
    "scores": (
        "Mean score of each iteration's responses. objective/score is what PPO maximises, before"
        " the KL penalty. The others are not trained on: where they fall while it rises, PPO"
        " exploits its reward."
    ),
    "objective/score": "Mean reward of the responses that PPO maximises, before the KL penalty.",
    "heldout/score": "Mean score by a reward model that PPO is not trained against.",
    "objective/kl": (
        "KL divergence from the reference policy, nats per response: how far PPO moved."
    ),
    "objective/reward": "Mean reward after the KL penalty.",
    "scores against kl, darker is later": (
        "What each nat of KL bought: a score that turns down while KL grows is over-optimisation."
    ),
    "kl to the reference, nats per response": (
        "How far the policy moved from the model that it started from. kl_coef holds it back."
    ),
    "response length, tokens": (
        "Mean length of a response. A drift without a rise in quality is a sign of reward hacking."
    ),
    "entropy, nats per token": (
        "How spread out the policy's choices are. Near 0 it says always the same."
    ),
    "repetition and variety": (
        "Whether responses repeat themselves, and each other. Repetition that rises, or variety"
        " that falls to a third, is a sign of reward hacking."
    ),
    "response/repeated": "Mean share of a response's 3-grams that it has said before.",
    "response/distinct": "Different 2-grams of a rollout's responses, divided by all 2-grams.",
    "policy/entropy": (
        "How spread out the policy's choices are, nats per token. Near 0 it says always the same."
    ),
    "share of tokens that are clipped": (
        "Share of tokens whose ratio or value is outside the clip range, where the update does not"
        " learn. Much above 0.2 the steps are too large."
    ),
    "groups whose rewards are all equal": (
        "Share of the prompts whose responses all have the same reward, which teaches nothing. Near"
        " 1 the prompts are too easy or too hard."
    ),
    "explained variance of the value model": (
        "How much of the returns' variance the value model predicts: 1 is all, 0 none, below 0"
        " worse than the mean."
    ),
    "loss on pretraining text, nats per token": (
        "Cross-entropy on the pretraining text that PPO-ptx mixes in."
    ),
    "parts of the reward, before their weights": (
        "Mean of each part of PPO's reward in an iteration: the reward model and each of your"
        " reward functions, each before it is multiplied by its weight."
    ),
    "ppo/clip_fraction": "Share of tokens whose policy ratio is outside the clip range.",
    "value/clip_fraction": "Share of tokens whose value is outside the value clip range.",
    # RAFT.
    "kept": "Whether RAFT trained on this response: it was among the best of its prompt.",
    "kept/score": "Mean reward of the responses that RAFT trained on.",
    "kept/response_tokens": "Length of the responses that RAFT trained on, in tokens.",
    "loss on the kept responses, nats per token": (
        "Cross-entropy on the responses that RAFT trained on, before each step."
    ),
    # Episodes.
    "iteration": "PPO's rollout and update in which this happened.",
    "prompt": "What the model was asked.",
    "response": "What the model answered.",
    # Lineage, health, changes, cost.
    "step": "A step of the pipeline: what made the artifact.",
    "stage": "The kind of step.",
    "version": "The artifact's version under the step's name.",
    "seconds": "How long the step took.",
    "flops": (
        "Floating-point operations of training: tokens x (4 x parameters + 2 x trained parameters)."
    ),
    "code": "The commit of the code that made it; + marks changes that were not committed.",
    "at": "The training step at which it was noticed.",
    "sign": "The health rule that fired.",
    "what it says": "What was noticed, and what to do.",
    "knob": "A setting of the step.",
    "version before": "The setting's value in the version before this one.",
    "this version": "The setting's value now.",
    # Sweeps.
    "member": "One run of the sweep, by its number.",
    "seeds": "Runs with these settings that differ in their seed alone.",
    "state": "How the member ended.",
    "made": "The last artifact that the member made.",
    "every member; the stronger its line, the better": (
        "Each line is a member, across one axis for each setting and the results."
    ),
    "missing_eos": "Share of responses that did not end by themselves, which the reward penalises.",
    "eval/tasks/accuracy": "Share of held-out task rows that the model answers correctly.",
    "prompt_strict": "IFEval: share of prompts with every instruction followed, checked as it is.",
    "prompt_loose": "The same, if the first or last line or asterisks may be left out.",
    "instruction_strict": "IFEval: share of instructions followed, checked as the answer is.",
    "instruction_loose": "The same, if the first or last line or asterisks may be left out.",
    "strict": "Share of the instructions of this kind that are followed.",
    "loose": "The same, if the first or last line or asterisks may be left out.",
    "cut_off": "Share of answers that reached the most new tokens without an end.",
    "left_out": "Prompts that leave no room for an answer in the model's context.",
}
_SAME = {  # other names of the same entries
    "over_length": "lead over length",
    "length_controlled_accuracy": "length-controlled",
    "kendall_tau": "kendall's tau",
    "agreement": "people agree",
    "reward_bench_2": "rewardbench 2",
    "easy": "easy style",
    "normal": "normal style",
    "hard": "hard style",
    "correlation": "score with length",
    "length": "response_tokens",
    "gold/score": "gold score",
    "reward/score": "reward score",
    "rules/score": "rules score",
    "baseline/gold/score": "its score",
    "greedy/gold/score": "greedy",
    "wins": "win rate",
    "win_rate": "win rate",
    "greedy/win_rate": "wins, greedy",
    "kl, nats": "kl",
    "pretrain_loss": "text loss",
    "fact_recall": "facts recalled",
    "acc": "accuracy",
    "acc_norm": "accuracy_norm",
    "reward/model": "reward model",
    "grad_norm": "gradient norm",
}
# Names with a variable part: a pattern, the entry's name, its meaning.
_PATTERNS = (
    (
        ".+: pairs of answers",
        "calibration",
        "How often the reward model is right against how sure it is.",
    ),
    (
        ".+ against kl; the line is the pareto front",
        "a result against KL",
        (
            "Each dot is a setting: what its KL bought. No other setting beats those on the line in"
            " both."
        ),
    ),
    (
        ".+ against .+",
        "a result against a setting",
        "Faint dots are members; the line joins the means, and bars are 95 % intervals.",
    ),
)


class Entry(NamedTuple):
    """One entry of the glossary."""

    word: str
    text: str

    @property
    def anchor(self) -> str:
        """The entry's id on a page."""
        return "meaning-" + re.sub(r"[^a-z0-9]+", "-", self.word).strip("-")


def glossary() -> list[Entry]:
    """Return every entry, in the order of the table."""
    return [Entry(word, text) for word, text in _MEANINGS.items()]


def meaning(name: str) -> Entry | None:
    """Return the entry of a name; None if it is unknown, for example a user's own metric.

    A metric's name may have a prefix (`tasks/copa/accuracy`, `copa accuracy (n=9)`). If the whole
    name is unknown, its last word decides.
    """
    shown = re.sub(r" \(.*\)$", "", " ".join(name.split()).lower())
    word = _SAME.get(shown, shown)
    if word in _MEANINGS:
        return Entry(word, _MEANINGS[word])
    for pattern, word, said in _PATTERNS:
        if re.fullmatch(pattern, shown):
            return Entry(word, said)
    last = re.split(r"[/ ]", shown)[-1]
    word = _SAME.get(last, last)
    return Entry(word, _MEANINGS[word]) if word in _MEANINGS else None
