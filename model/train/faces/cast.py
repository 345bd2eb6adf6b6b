"""Who is shown in training and who is reserved for testing: the fixed list of both splits.

No voice, text or person of one split is in the other. A dataset's seed chooses among these, and
never moves one to the other side.
"""

from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import Literal, TypeAlias

Split: TypeAlias = Literal["train", "test"]
SPLITS: Sequence[Split] = ("train", "test")

PERSONS: Mapping[Split, range] = MappingProxyType({"train": range(400), "test": range(400, 464)})
"""Numbers for `identity.Identity.of`."""

VOICES: Mapping[Split, Sequence[str]] = MappingProxyType(
    {
        "train": (
            "en", "en+f1", "en+f3", "en+m2", "en+m4", "en+Alicia", "en-us",
            "en-us+f2", "en-us+f5", "en-us+m1", "en-us+m5", "en-us+Andrea", "en-us+Diogo",
            "en-gb-scotland", "en-gb-scotland+f4", "en-gb-x-rp", "en-gb-x-rp+f2", "en-gb-x-rp+m6",
            "en-029", "en-029+f1", "en-gb-x-gbclan+m8", "en-gb-x-gbcwmd+f3", "en-us+steph",
            "en+Mario",
        ),
        "test": (
            "en+m3", "en-us+m7", "en+linda", "en-us+Annie", "en-029+m3", "en-gb-x-rp+linda",
            "en-gb-scotland+m7", "en-us+Henrique",
        ),
    }
)  # fmt: skip
"""Voices of espeak-ng: a language, and a variant that changes the speaker."""

TEXTS: Mapping[Split, Sequence[str]] = MappingProxyType(
    {
        "train": (
            "Good morning, and welcome to our little shop.",
            "The ferry leaves at seven, so we should hurry.",
            "I have never seen the sea as calm as it is today.",
            "Please put the blue cups on the upper shelf.",
            "How many people will come to the meeting on Monday?",
            "My sister plays the violin in a small orchestra.",
            "We walked along the river until it became dark.",
            "Could you tell me where the nearest station is?",
            "Our garden is full of apples, pears and plums.",
            "The weather report promises sunshine for the whole week.",
            "He opened the window and listened to the birds.",
            "You can pay in cash or with a card, as you like.",
            "Every evening they told each other a new story.",
            "Who left the empty boxes in front of the door?",
            "The museum shows pictures of ships, storms and harbours.",
            "Take the second road on the left, then go straight on.",
            "She laughed so loudly that everybody looked around.",
            "A cup of hot soup is the best thing after a cold day.",
            "Your parcel will arrive between nine and eleven o'clock.",
            "I would rather stay at home and read a good book.",
            "The children built a huge castle out of wet sand.",
            "Nobody knew why the old clock had stopped at noon.",
            "First we mix the flour, the sugar and the butter.",
            "It takes about an hour to reach the top of the hill.",
            "That was a wonderful idea, thank you very much.",
            "Few visitors know the way through the northern wood.",
            "They ought to repair the bridge before winter comes.",
            "Do you prefer tea, coffee, or a glass of water?",
            "The teacher wrote three short questions on the board.",
            "In autumn the leaves turn yellow, orange and red.",
            "Our team won the match by a single point.",
            "You will find the answer at the bottom of page four.",
            "Please speak slowly, the line is rather poor.",
            "He forgot his umbrella and came home soaking wet.",
            "Those two houses were built more than a century ago.",
            "Let me show you how the new machine works.",
            "The moon rose above the roofs of the sleeping town.",
            "I am sorry, but all our rooms are taken tonight.",
            "We bought fresh bread, cheese and a jar of honey.",
            "Why don't we ask your uncle for advice?",
            "One, two, three, four, five, six, seven, eight, nine, ten.",
            "The parade will begin as soon as the music starts.",
            "Her voice was clear, and her words were easy to follow.",
            "Oh, what a lovely surprise to meet you here!",
            "Keep the engine running while I open the gate.",
            "Most of our customers come back every year.",
            "A farmer, a baker and a lawyer shared the same table.",
            "You may use this computer, but please save your work.",
        ),
        "test": (
            "The quick brown fox jumps over the lazy dog.",
            "Tomorrow we shall visit my grandmother in the valley.",
            "Have you already heard about the new library?",
            "Rain is falling softly on the leaves outside.",
            "Please read the instructions before you press the button.",
            "A small boat moved slowly out of the harbour.",
            "I think we have met somewhere before, haven't we?",
            "The price of oil rose by two percent in March.",
            "Open your mouth and say a long ah.",
            "Between the shelves stood a very tall green lamp.",
            "All of us were tired, but nobody wanted to leave.",
            "Fish, chips and mushy peas are served until midnight.",
        ),
    }
)  # fmt: skip
