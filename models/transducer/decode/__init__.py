"""Decoding of transducers: searches that know no model class, whole or chunk by chunk."""

from models.transducer.decode.beam import ExpansionBeam, ModifiedBeam
from models.transducer.decode.boost import phrase_boost
from models.transducer.decode.decodable import Decodable, Fusion
from models.transducer.decode.greedy import Greedy
from models.transducer.decode.search import Hypotheses, Search, SearchState, decode, decode_step, hypotheses, start

__all__ = [
    "Decodable",
    "ExpansionBeam",
    "Fusion",
    "Greedy",
    "Hypotheses",
    "ModifiedBeam",
    "Search",
    "SearchState",
    "decode",
    "decode_step",
    "hypotheses",
    "phrase_boost",
    "start",
]
