"""Recurrent networks over text."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from edgefl_exporter.zoo.entry import seeded


class CharLSTM(nn.Module):
    """Character numbers [batch, time] -> logits of each next character [batch, time, characters]."""

    def __init__(self, characters: int, embedding: int, width: int, layers: int) -> None:
        super().__init__()
        self.embedding = nn.Embedding(characters, embedding)
        self.lstm = nn.LSTM(embedding, width, layers, batch_first=True)
        self.head = nn.Linear(width, characters)

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.head(self.lstm(self.embedding(x))[0])
        return logits


@seeded
def char_lstm(width: int = 256, time: int = 80) -> tuple[nn.Module, Tensor]:
    """FedAvg's character LSTM for Shakespeare: embedding 8, two layers of 256."""
    return CharLSTM(80, 8, width, 2), torch.zeros(1, time, dtype=torch.int64)
