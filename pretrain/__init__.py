"""CLIP pretraining by CLIPA token reduction on DeepSpeed ZeRO."""
