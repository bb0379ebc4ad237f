"""Keep one prompt of those that begin with the same words."""

from align.data.records import SPLITS, read_info, read_rows, write_info, write_rows


def run(cfg, inputs, job):
    folders = inputs.folders("prompts")
    metrics = {}
    for split in SPLITS:
        kept, seen = [], set()
        for row in read_rows(folders, split):
            beginning = tuple(row["prompt"][-1]["content"].split()[: cfg.num_words])
            if beginning not in seen:
                seen.add(beginning)
                kept.append(row)
        write_rows(job.out, split, kept, record="prompts")
        metrics[f"rows/{split}"] = float(len(kept))
    info = read_info(folders[0])
    write_info(
        job.out,
        record="prompts",
        source="dedupe",
        licence=info["licence"],
        dropped={},
        gold=info.get("gold"),
    )
    job.log.info(f"{metrics['rows/train']:,.0f} prompts left to train on")
    return metrics
