"""Options that people know from open_clip's command line, and what they are called here."""

import re
from collections.abc import Sequence

# open_clip 3.3's training options (open_clip_train/params.py) -> the option here.
HABITS = {
    "accum_freq": "--stages.NAME.micro_batch_samples, a rank's samples at once",
    "batch_size": "--stages.NAME.global_batch_samples, over all ranks",
    "beta1": "--optimizer.beta1",
    "beta2": "--optimizer.beta2",
    "dataset_type": "`python -m data_prep build --format`; training reads what it made",
    "delete_previous_checkpoint": "--checkpoint.keep",
    "epochs": "--stages.NAME.epochs (or samples, or steps)",
    "eps": "--optimizer.eps",
    "force_image_size": "--stages.NAME.tokens.image_px",
    "force_patch_dropout": "--stages.NAME.tokens.image_reduction random, with image_keep_tokens",
    "gather_with_grad": "always so; leave it out",
    "grad_checkpointing": "--engine.checkpoint_image true, --engine.checkpoint_text true",
    "grad_clip_norm": "--optimizer.gradient_clip",
    "imagenet_val": "`python -m pretrain.evaluate --classification.images DIR "
    "--classification.classes imagenet`",
    "local_loss": "always so; leave it out",
    "local_rank": "of no use; leave it out, with the deepspeed launcher by --no_local_rank",
    "lock_image": "--stages.NAME.locked image",
    "lock_text": "--stages.NAME.locked text",
    "logs": "--run_dir",
    "lr": "--stages.NAME.base_learning_rate; the rate is that times the batch / 256",
    "lr_scheduler": "--stages.NAME.schedule.kind",
    "name": "--run_dir",
    "opt": "--optimizer.kind",
    "precision": "--engine.precision bf16, autocast or fp32",
    "pretrained": "`python -m pretrain.convert SOURCE OUT`, then --start.export OUT",
    "report_to": "--log.tracker wandb or trackio; TensorBoard is always there",
    "resume": "the same command again, with the same --run_dir",
    "save_frequency": "--checkpoint.every_steps",
    "siglip": "--loss.kind sigmoid",
    "torchcompile": "--engine.compile true",
    "train_data": "--data.train DATASET, made by `python -m data_prep build --source CORPUS`",
    "train_num_samples": "--stages.NAME.samples",
    "val_data": "--evaluation.sets '{NAME: DATASET}'",
    "warmup": "--stages.NAME.warmup_steps",
    "wd": "--optimizer.weight_decay",
    "workers": "--data.loader.workers",
    "zeroshot_frequency": "--evaluation.every_steps",
}


def refuse_habits(words: Sequence[str]) -> None:
    """ValueError for the first option of open_clip's that is called otherwise here."""
    for word in words:
        name = word.removeprefix("--").partition("=")[0].replace("-", "_")
        if word.startswith("--") and name in HABITS:
            raise ValueError(f"{word.partition('=')[0]}: here it is {HABITS[name]}")
        if theirs := re.fullmatch(r"ViT-([A-Za-z]+)-(\d+)(-\w+)*", word):
            raise ValueError(
                f"{word}: here it is --model.preset {theirs[1]}/{theirs[2]}, and the picture's "
                "size is --stages.NAME.tokens.image_px"
            )
