"""Inputs for the zoo, made here: sentences, notes of known pitch, random images.

A definition names one of ``sentence``, ``note``, ``image`` and ``tokens`` as its ``samples``: called with a
NumPy random generator it returns one request's inputs. Profiling and the load generator use them.
"""

from __future__ import annotations

from typing import Any, Final

import numpy as np
import numpy.typing as npt

SAMPLE_RATE: Final = 16_000
FRAME: Final = 1_024

SENTENCES: Final = (
    "The orchestra tuned its instruments before the conductor walked in.",
    "A violin string breaks more often in dry winter air.",
    "She practised the cello concerto until midnight.",
    "The drummer counted four and the band came in together.",
    "Our choir sings in an old stone church on Sundays.",
    "He wrote a short melody on the back of a train ticket.",
    "Fresh bread smells best in the first hour after baking.",
    "Add a pinch of salt to the boiling water before the pasta.",
    "The soup needs another ten minutes on a low flame.",
    "My grandmother grows tomatoes and basil on her balcony.",
    "This restaurant serves the best noodles in town.",
    "Coffee tastes bitter when the water is too hot.",
    "The train to the coast leaves from platform seven.",
    "Heavy snow closed the mountain pass for three days.",
    "We missed our flight because of a traffic jam.",
    "The ferry crosses the bay every half hour in summer.",
    "Bicycles are the quickest way through the old town.",
    "The pilot announced a smooth landing in light rain.",
    "A storm with strong winds is expected tomorrow night.",
    "The river rose by two metres after the heavy rain.",
    "Morning fog covered the valley until noon.",
    "It has not rained here since the beginning of June.",
    "The lake freezes over almost every January.",
    "Scientists found a new species of frog in the rainforest.",
    "The telescope took a picture of a distant galaxy.",
    "Water expands when it turns into ice.",
    "A vaccine trains the immune system to recognise a virus.",
    "Bees can see ultraviolet light that humans cannot.",
    "The moon pulls the oceans and causes the tides.",
    "Plants turn sunlight into sugar in their leaves.",
    "The experiment failed because the sensor was not calibrated.",
    "The graphics card renders sixty frames every second.",
    "A neural network learns from many labelled examples.",
    "The server answers thousands of requests per second.",
    "Please restart the computer after the update.",
    "He forgot the password of his email account.",
    "The program crashed because it ran out of memory.",
    "A good test fails when the code is wrong.",
    "The database keeps a copy of every order.",
    "Her phone battery lasts for two whole days.",
    "The goalkeeper saved a penalty in the last minute.",
    "She won the marathon with a new national record.",
    "Our team lost the final by a single point.",
    "He swims a thousand metres every morning before work.",
    "The chess champion sacrificed her queen and won.",
    "Tickets for the football match sold out within an hour.",
    "The bank raised its interest rates for the third time.",
    "House prices in the city have doubled in ten years.",
    "The company pays its employees on the last Friday of the month.",
    "He bought shares of a small energy firm.",
    "The shop gives a discount to students and pensioners.",
    "Parliament voted for a new law on clean air.",
    "The mayor opened the rebuilt library in March.",
    "The museum shows paintings from the seventeenth century.",
    "The novel tells the story of two sisters during the war.",
    "The film was too long but the ending surprised everyone.",
    "A black cat sleeps on the warm roof of the car.",
    "The dog barked at the postman and then licked his hand.",
    "Wild geese fly south in autumn.",
    "The child drew a red dragon above a tiny castle.",
    "Her daughter is learning to read and write.",
    "The doctor told him to rest for a week.",
)
"""Plain English on a dozen topics: music, food, travel, weather, science, computing, sport, money …"""

NOTES: Final = {
    "A2": 110.0,
    "E3": 164.8138,
    "A3": 220.0,
    "C4": 261.6256,
    "E4": 329.6276,
    "A4": 440.0,
    "E5": 659.2551,
}
"""Names and frequencies in Hz (equal temperament, A4 = 440 Hz) that CREPE hears well."""

Inputs = dict[str, npt.NDArray[Any]]


def text(value: str) -> Inputs:
    """MiniLM's input for one text."""
    return {"text": np.array(value.encode(), dtype=object)}


def tone(hz: float, phase: float = 0.0, harmonics: int = 8) -> npt.NDArray[np.float32]:
    """One frame [1024] at 16 kHz of a harmonic tone: partials fall off as 1/k, none above 7 kHz.

    Args:
        hz: the fundamental.
        phase: of the fundamental, in radians; partial k starts at k times that.
        harmonics: most partials.
    """
    time = np.arange(FRAME) / SAMPLE_RATE
    wave = np.zeros(FRAME)
    for k in range(1, harmonics + 1):
        if k * hz < 7_000:
            wave += np.sin(2 * np.pi * k * hz * time + k * phase) / k
    scaled: npt.NDArray[np.float32] = (0.5 * wave / np.abs(wave).max()).astype(np.float32)
    return scaled


def sentence(rng: np.random.Generator) -> Inputs:
    """One of :data:`SENTENCES` as MiniLM's input."""
    return text(SENTENCES[int(rng.integers(len(SENTENCES)))])


def note(rng: np.random.Generator) -> Inputs:
    """A tone of one of :data:`NOTES` at a random phase as CREPE's input."""
    hz = list(NOTES.values())[int(rng.integers(len(NOTES)))]
    return {"audio": tone(hz, float(rng.uniform(0, 2 * np.pi)))}


def image(rng: np.random.Generator) -> Inputs:
    """Normal noise as ResNet's input: what a normalized photograph has for mean and variance."""
    return {"image": rng.standard_normal((3, 224, 224), dtype=np.float32)}


def tokens(rng: np.random.Generator) -> Inputs:
    """128 token ids of BERT's vocabulary, none of them special, as BERT's input."""
    return {"input_ids": rng.integers(1_000, 30_000, 128, dtype=np.int64)}


def cents_apart(a_hz: float, b_hz: float) -> float:
    """The distance of two pitches in cents (hundredths of a semitone), never negative."""
    return float(abs(1200.0 * np.log2(a_hz / b_hz)))
