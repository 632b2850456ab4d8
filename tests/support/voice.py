"""A machine's voice: espeak-ng's own library, as its Python package brings it.

Run as a script, this says what standard input holds: `voice.py VOICE RATE PITCH`.
"""

import ctypes
import io
import subprocess
import sys
import wave
from pathlib import Path

import espeakng_loader

# Of espeak-ng's speak_lib.h.
_SYNCHRONOUS = 2
_RATE, _PITCH = 1, 3
_AT_CHARACTER, _UTF8 = 1, 1
_Callback = ctypes.CFUNCTYPE(
    ctypes.c_int, ctypes.POINTER(ctypes.c_short), ctypes.c_int, ctypes.c_void_p
)


def speak(text: str, voice: str, rate: int, pitch: int) -> bytes:
    """Return a WAV file of 16 bits, mono; always the same of the same words.

    Args:
        voice: its name, such as `en-us`.
        rate: words a minute.
        pitch: 0 to 100.
    """
    # In a process of its own, since every sentence depends on what was said before.
    command = [sys.executable, __file__, voice, str(rate), str(pitch)]
    return subprocess.run(command, input=text.encode(), stdout=subprocess.PIPE, check=True).stdout


def _say(text: bytes, voice: str, rate: int, pitch: int) -> bytes:
    library, sample_rate = _opened()
    samples = bytearray()

    @_Callback
    def take(start: "ctypes._Pointer[ctypes.c_short]", count: int, _: int | None) -> int:
        if start and count > 0:
            samples.extend(ctypes.string_at(start, 2 * count))
        return 0

    library.espeak_SetSynthCallback(take)
    content = text + b"\0"
    for status in (
        library.espeak_SetVoiceByName(voice.encode()),
        library.espeak_SetParameter(_RATE, rate, 0),
        library.espeak_SetParameter(_PITCH, pitch, 0),
        library.espeak_Synth(content, len(content), 0, _AT_CHARACTER, 0, _UTF8, None, None),
    ):
        if status != 0:
            raise RuntimeError(f"espeak-ng refused: status {status}")
    file = io.BytesIO()
    with wave.open(file, "wb") as writer:
        writer.setnchannels(1)
        writer.setsampwidth(2)
        writer.setframerate(sample_rate)
        writer.writeframes(bytes(samples))
    return file.getvalue()


def _opened() -> tuple[ctypes.CDLL, int]:
    """Return the library, and the samples of a second."""
    library = ctypes.CDLL(espeakng_loader.get_library_path())
    library.espeak_Synth.argtypes = [
        ctypes.c_char_p,
        ctypes.c_size_t,
        ctypes.c_uint,
        ctypes.c_int,
        ctypes.c_uint,
        ctypes.c_uint,
        ctypes.c_void_p,
        ctypes.c_void_p,
    ]
    data = Path(espeakng_loader.get_data_path())
    sample_rate = library.espeak_Initialize(_SYNCHRONOUS, 0, str(data).encode(), 0)
    if sample_rate <= 0:
        raise RuntimeError("espeak-ng finds none of its data")
    return library, sample_rate


if __name__ == "__main__":
    chosen_voice, chosen_rate, chosen_pitch = sys.argv[1:]
    said = _say(sys.stdin.buffer.read(), chosen_voice, int(chosen_rate), int(chosen_pitch))
    sys.stdout.buffer.write(said)
