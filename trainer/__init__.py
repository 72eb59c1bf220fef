"""Train: embeddings → loss → steps → checkpoints. Never imports dataloader."""

from trainer.lora import print_lora_info, setup_lora_model
from trainer.trainer import EmbeddingTrainer

__all__ = ["EmbeddingTrainer", "print_lora_info", "setup_lora_model"]
