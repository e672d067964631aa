"""A server that has imported what training needs, and forks a process in milliseconds."""

import multiprocessing

PRELOADED = [
    "pretrain.loop",
    "pretrain.recipe.parsing",
    "pretrain.run.start",
    "pretrain.run.stage_evaluation",
    "pretrain.models.clip",
    "pretrain.engine.engine",
    "pretrain.export.inference",
]
CONTEXT = multiprocessing.get_context("forkserver")
CONTEXT.set_forkserver_preload(PRELOADED)
