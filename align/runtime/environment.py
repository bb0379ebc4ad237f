"""Environment variables that make libraries print less and send no telemetry.

They have no effect on a library that is already imported.
"""

QUIET = {
    "HF_HUB_DISABLE_TELEMETRY": "1",
    "HF_HUB_DISABLE_PROGRESS_BARS": "1",
    "HF_DATASETS_DISABLE_PROGRESS_BARS": "1",
    "TRANSFORMERS_VERBOSITY": "error",
    "TOKENIZERS_PARALLELISM": "true",
    "TQDM_DISABLE": "1",  # otherwise lm-eval shows its own progress bars
}
