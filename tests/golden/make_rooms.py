"""Makes room_response.safetensors, a room's responses by pyroomacoustics.

pip install pyroomacoustics==0.10.1 safetensors   (an environment apart)
python tests/golden/make_rooms.py
"""

from pathlib import Path

import numpy as np
import pyroomacoustics
from safetensors.numpy import save_file

HERE = Path(__file__).resolve().parent

SIZE = (5.3, 4.1, 2.9)
ABSORPTION = {"west": 0.2, "east": 0.35, "south": 0.4, "north": 0.3, "floor": 0.15, "ceiling": 0.5}
SOURCE = (1.37, 2.21, 1.43)
MICROPHONES = ((3.9, 1.1, 1.2), (3.95, 1.15, 1.25))
TAPS = 960  # 60 ms: 20.6 m, which no image of more than 14 reflections is near enough for


def main() -> None:
    """Writes the file."""
    pyroomacoustics.constants.set("rir_hpf_enable", False)  # else it takes off what is below 10 Hz
    walls = {name: pyroomacoustics.Material(share) for name, share in ABSORPTION.items()}
    room = pyroomacoustics.ShoeBox(SIZE, fs=16000, materials=walls, max_order=14, air_absorption=False)
    room.add_source(SOURCE)
    room.add_microphone_array(np.array(MICROPHONES).T)
    room.compute_rir()
    source = room.sources[0]
    distance = np.linalg.norm(source.images.T.astype(np.float64) - MICROPHONES[0], axis=1)
    near = np.flatnonzero(distance < TAPS / 16000 * room.c)
    near = near[np.argsort(distance[near])]
    assert room.c == 343
    assert pyroomacoustics.constants.get("frac_delay_length") == 81  # a lead of 40 samples
    assert source.orders[near].max() < 14
    arrays = {
        "size": np.array(SIZE),
        "absorption": np.array(list(ABSORPTION.values())),
        "source": np.array(SOURCE),
        "microphones": np.array(MICROPHONES),
        "images": source.images.T[near].astype(np.float32),
        "gains": source.damping[0][near].astype(np.float32),
        "response": np.stack([rir[0][: 40 + TAPS] for rir in room.rir]).astype(np.float32),
    }
    save_file({name: np.ascontiguousarray(a) for name, a in arrays.items()}, HERE / "room_response.safetensors")


if __name__ == "__main__":
    main()
