"""What is asked of a server: conversations, their turns and the identity of their tokens."""

from .build import make_workload, workload_schema
from .conversation import Conversation, Turn, Workload
from .reuse import PrefixIndex
from .tokenizer import ByteTokenizer, PieceTokenizer, Tokenizer
from .tokens import BlockLog, IdLog, StreamLog, TokenLog

__all__ = [
    "BlockLog",
    "ByteTokenizer",
    "Conversation",
    "IdLog",
    "PieceTokenizer",
    "PrefixIndex",
    "StreamLog",
    "TokenLog",
    "Tokenizer",
    "Turn",
    "Workload",
    "make_workload",
    "workload_schema",
]
