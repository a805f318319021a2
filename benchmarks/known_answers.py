"""Questions whose answers are known, easy ones and ones that a small model makes up: for `benchmarks.hallucination`."""

from __future__ import annotations

import re
from dataclasses import dataclass

_CAPITALS = (
    "France Paris, Germany Berlin, Italy Rome, Spain Madrid, Japan Tokyo, Russia Moscow, Greece Athens, Egypt "
    "Cairo, Portugal Lisbon, Austria Vienna, Poland Warsaw, Hungary Budapest, Norway Oslo, Sweden Stockholm, "
    "Finland Helsinki, Denmark Copenhagen, Ireland Dublin, Cuba Havana, Peru Lima, Chile Santiago, Kenya Nairobi, "
    "Nigeria Abuja, Ghana Accra, Senegal Dakar, Mali Bamako, Chad N'Djamena, Niger Niamey, Uganda Kampala, Rwanda "
    "Kigali, Zambia Lusaka, Malawi Lilongwe, Namibia Windhoek, Botswana Gaborone, Mongolia Ulaanbaatar, Nepal "
    "Kathmandu, Bhutan Thimphu, Laos Vientiane, Cambodia Phnom, Vietnam Hanoi, Thailand Bangkok, Malaysia Kuala, "
    "Iran Tehran, Iraq Baghdad, Syria Damascus, Jordan Amman, Lebanon Beirut, Oman Muscat, Qatar Doha, Yemen Sanaa, "
    "Turkey Ankara, Georgia Tbilisi, Armenia Yerevan, Latvia Riga, Estonia Tallinn, Lithuania Vilnius, Slovenia "
    "Ljubljana, Croatia Zagreb, Serbia Belgrade, Bulgaria Sofia, Romania Bucharest, Canada Ottawa, Australia "
    "Canberra, Fiji Suva, Samoa Apia, Iceland Reykjavik, Bolivia Sucre, Ecuador Quito, Uruguay Montevideo, Paraguay "
    "Asuncion"
)
_SYMBOLS = (
    "oxygen O, hydrogen H, carbon C, nitrogen N, iron Fe, gold Au, silver Ag, sodium Na, potassium K, calcium Ca, "
    "copper Cu, zinc Zn, lead Pb, tin Sn, mercury Hg, tungsten W, helium He, neon Ne, chlorine Cl, iodine I"
)
_AUTHORS = (
    "Romeo and Juliet=Shakespeare, Hamlet=Shakespeare, Pride and Prejudice=Austen, Emma=Austen, War and Peace=Tolstoy, "
    "Anna Karenina=Tolstoy, Crime and Punishment=Dostoevsky|Dostoyevsky, Moby-Dick=Melville, Don Quixote=Cervantes, "
    "The Odyssey=Homer, Faust=Goethe, The Trial=Kafka, Ulysses=Joyce, Dracula=Stoker, Frankenstein=Shelley, "
    "Animal Farm=Orwell, The Hobbit=Tolkien, The Great Gatsby=Fitzgerald, Jane Eyre=Bront, Oliver Twist=Dickens, "
    "Walden=Thoreau, The Stranger=Camus, Beloved=Morrison, Candide=Voltaire, Middlemarch=Eliot"
)
_OTHERS = (
    "What colour is a ripe banana?=yellow; How many days are in a week?=seven|7; How many legs has a spider?=eight|8; "
    "What is the opposite of hot?=cold; Which planet is nearest to the sun?=Mercury; "
    "Which planet is the largest of the solar system?=Jupiter; What is frozen water called?=ice; "
    "Which animal is called the king of the jungle?=lion; Which gas do plants take in?=carbon dioxide|CO2; "
    "Who painted the Mona Lisa?=Leonardo|Vinci; Who painted Guernica?=Picasso; Who painted The Night Watch?=Rembrandt; "
    "Which is the longest river of Africa?=Nile; Which is the highest mountain on Earth?=Everest; "
    "Which is the largest ocean?=Pacific; In which year did the Titanic sink?=1912; "
    "In which year did the Second World War end?=1945; In which year did the French Revolution begin?=1789; "
    "In which year did people first land on the moon?=1969; Who discovered penicillin?=Fleming; "
    "Who discovered radium?=Curie; Who invented the telephone?=Bell; Who composed The Four Seasons?=Vivaldi; "
    "Who composed The Magic Flute?=Mozart; What is the currency of Japan?=yen; What is the currency of Sweden?=kron; "
    "What is the currency of Poland?=z.oty; What is the currency of India?=rupee; "
    "Which language is spoken in Brazil?=Portuguese; Which language is spoken in Austria?=German; "
    "What is the square root of 144?=12|twelve; What is 7 times 8?=56|fifty-six; How many sides has a hexagon?=six|6; "
    "Which is the smallest prime number?=2|two; Which organ pumps blood?=heart; "
    "Which vitamin does sunlight give us?=D\\b"
)


@dataclass(frozen=True)
class Question:
    """One question, and a pattern that a true answer matches."""

    text: str
    answer: re.Pattern[str]

    def is_true(self, said: str) -> bool:
        """Whether the first hundred characters name the answer: what follows is often talk about something else."""
        return bool(self.answer.search(said[:100]))


def _question(text: str, answer: str, flags: int = re.IGNORECASE) -> Question:
    return Question(text, re.compile(rf"\b(?:{answer})", flags))


def questions() -> tuple[Question, ...]:
    """All of them, in the order of their kinds."""
    found = []
    for pair in _CAPITALS.split(", "):
        country, _, city = pair.partition(" ")
        found.append(_question(f"What is the capital of {country}?", city))
    for pair in _SYMBOLS.split(", "):
        element, _, symbol = pair.partition(" ")
        found.append(_question(f"What is the chemical symbol of {element}?", rf"{symbol}\b", 0))
    for pair in _AUTHORS.split(", "):
        title, _, author = pair.partition("=")
        found.append(_question(f"Who wrote {title}?", author))
    for pair in _OTHERS.split("; "):
        text, _, answer = pair.partition("=")
        found.append(_question(text, rf"(?:{answer})"))
    return tuple(found)
