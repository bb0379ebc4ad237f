"""The contract of every stage: inputs, output, and knobs with their defaults, units and sources.

`align STAGE --help` prints a knob's comment. A stage's key (see `plan.py`) holds only the knobs
that differ from the defaults here. So bump the stage's `VERSION` if you change a default or the
meaning of a knob. A new knob needs no bump.

Sources: [InstructGPT] Ouyang et al. 2022; [Ziegler] Ziegler et al. 2019 and
openai/lm-human-preferences; [GPT-1] Radford et al. 2018 and openai/finetune-transformer-lm; [GPT-2]
openai/gpt-2; [GPT-3] Brown et al. 2020; [GPT-4] OpenAI 2023; [T5] Raffel et al. 2020; [LLaMA]
Touvron et al. 2023; [LoRA] Hu et al. 2021; [Muon] Jordan et al. 2024 with the scale of Liu et al.
2025; [GRPO] Shao et al. 2024, DeepSeekMath; [Dr. GRPO] Liu et al. 2025; [DAPO] Yu et al. 2025;
[RLOO] Ahmadian et al. 2024; [DPO] Rafailov et al. 2023; [KTO] Ethayarajh et al. 2024; [APO]
D'Oosterlinck et al. 2024; [RAFT] Dong et al. 2023 and OptimalScale/LMFlow; [Gao] Gao et al. 2022,
on overoptimization; [TRL] the defaults of TRL 1.16; [ours] measured or judged here.
"""

from __future__ import annotations

from align.configs.best_of_n import BestOfN
from align.configs.dpo import Dpo
from align.configs.evaluate import Evaluate, JudgeConfig, Prompt
from align.configs.evaluate_reward import EvaluateReward
from align.configs.finetune import TASKS, Finetune
from align.configs.groups import Grpo, Rloo
from align.configs.knobs import (
    MODELS,
    PRECISIONS,
    RECORDS,
    SPLITS,
    StageConfig,
    check_ranges,
    filled,
    knob,
    require,
)
from align.configs.kto import Kto
from align.configs.models import LoraConfig, ModelConfig
from align.configs.plugins import complaints, stages_of_plugins
from align.configs.ppo import Ppo
from align.configs.pretrain import Pretrain, Tokens
from align.configs.raft import Raft
from align.configs.rollouts import RolloutConfig
from align.configs.run import HardwareConfig, RunConfig, TrackerConfig
from align.configs.stages import Collect, Compare, Data, ImportModel, Reward, Sft, Tokenizer
from align.configs.text_to_text import TextToText
from align.errors import ConfigError, did_you_mean

__all__ = [
    "COMMANDS",
    "MODELS",
    "PRECISIONS",
    "RECORDS",
    "SPLITS",
    "STAGES",
    "TAKEN",
    "TASKS",
    "BestOfN",
    "Collect",
    "Compare",
    "Data",
    "Dpo",
    "Evaluate",
    "EvaluateReward",
    "Finetune",
    "Grpo",
    "HardwareConfig",
    "ImportModel",
    "JudgeConfig",
    "Kto",
    "LoraConfig",
    "ModelConfig",
    "Ppo",
    "Pretrain",
    "Prompt",
    "Raft",
    "Reward",
    "Rloo",
    "RunConfig",
    "Sft",
    "StageConfig",
    "TextToText",
    "Tokenizer",
    "Tokens",
    "TrackerConfig",
    "check_ranges",
    "filled",
    "knob",
    "learns_from_preferences",
    "learns_from_rewards",
    "require",
    "stage_class",
]

_ALL = (
    Data,
    Tokenizer,
    Tokens,
    Pretrain,
    Finetune,
    TextToText,
    Sft,
    Compare,
    Collect,
    Reward,
    Dpo,
    Kto,
    Ppo,
    Grpo,
    Rloo,
    Raft,
    Prompt,
    Evaluate,
    BestOfN,
    EvaluateReward,
    ImportModel,
)
COMMANDS = (
    *("run", "plan", "model", "report", "diagnose", "chat", "sample", "sweep", "label"),
    *("artifacts", "help"),
)
STAGES: dict[str, type[StageConfig]] = {cls.STAGE: cls for cls in _ALL}
TAKEN = frozenset({*STAGES, *COMMANDS})  # names that no stage of a plugin can have
STAGES |= stages_of_plugins(TAKEN)  # last: modules of plugins import this module


def stage_class(name: str) -> type[StageConfig]:
    """Return the config class of a stage.

    Raises:
        ConfigError: no stage has this name. The message suggests the most similar one.
    """
    if name not in STAGES:
        hint = did_you_mean(name, STAGES)
        broken = "".join(f"; {line}" for line in complaints(TAKEN))
        raise ConfigError(f"unknown stage {name!r}{hint}; stages: {', '.join(STAGES)}{broken}")
    return STAGES[name]


def learns_from_preferences(stage: str) -> bool:
    """Return whether a stage tunes a model on rankings or labels, without a reward model."""
    return issubclass(STAGES.get(stage, StageConfig), Dpo | Kto)


def learns_from_rewards(stage: str) -> bool:
    """Return whether a stage samples from the policy and trains it by rewards, as `ppo` does."""
    return issubclass(STAGES.get(stage, StageConfig), RolloutConfig)
