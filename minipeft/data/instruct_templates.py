"""Ways to ask for the class of a text: each is an instruction, and the answer that it asks for, a class each.

Another way of asking may want another word for the same class, so a model has to read the instruction. Some ways are held
out: they are for testing alone (Wei et al., 2021, arXiv 2109.01652, section 2.1, writes ten templates a data set).
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Template:
    """An instruction, and the output for each class, in the order of the task's labels."""

    instruction: str
    answers: tuple[str, ...]


@dataclass(frozen=True)
class Templates:
    """The ways to ask about a task's texts. `names` stand before the text and its pair, where there is a pair."""

    train: tuple[Template, ...]
    held_out: tuple[Template, ...]
    names: tuple[str, str] = ("", "")


_NO_YES = ("no", "yes")
_SERIOUS = ("serious", "sarcastic")
_MOOD = ("negative", "neutral", "positive")
_BEARS = ("irrelevant", "relevant")
_TOPICS = ("business", "entertainment", "politics", "sport", "technology")

TEMPLATES: dict[str, Templates] = {
    "sarcasm": Templates(
        train=(
            Template("Is this headline sarcastic? Answer yes or no.", _NO_YES),
            Template("Is the headline below meant seriously? Answer yes or no.", ("yes", "no")),
            Template("Classify the headline as serious or sarcastic.", _SERIOUS),
            Template("What is the tone of this headline, serious or sarcastic?", _SERIOUS),
            Template("Did a satirical paper print this headline, or a newspaper?", ("newspaper", "satirical paper")),
        ),
        held_out=(
            Template("Say whether the following headline is sarcastic. Reply yes or no.", _NO_YES),
            Template("Decide if the headline is sarcastic or serious.", _SERIOUS),
        ),
    ),
    "tweets": Templates(
        train=(
            Template("What is the sentiment of this tweet: negative, neutral or positive?", _MOOD),
            Template("Classify the tweet as negative, neutral or positive.", _MOOD),
            Template(
                "How does the writer of this tweet feel? Answer bad, neither or good.", ("bad", "neither", "good")
            ),
            Template("Is this tweet positive? Answer yes or no.", ("no", "no", "yes")),
            Template("Is this tweet negative? Answer yes or no.", ("yes", "no", "no")),
        ),
        held_out=(
            Template("Name the mood of the tweet below: negative, neutral or positive.", _MOOD),
            Template("Say whether this tweet is positive. Reply yes or no.", ("no", "no", "yes")),
        ),
    ),
    "privacy": Templates(
        train=(
            Template("Does the clause of the privacy policy help to answer the question? Answer yes or no.", _NO_YES),
            Template("Is the clause relevant or irrelevant to the question?", _BEARS),
            Template("Classify the clause, given the question, as relevant or irrelevant.", _BEARS),
            Template("Would you read this clause to a customer who asks this question? Answer yes or no.", _NO_YES),
        ),
        held_out=(
            Template("Say whether the clause bears on the question. Reply yes or no.", _NO_YES),
            Template("Decide if the clause is relevant or irrelevant to what is asked.", _BEARS),
        ),
        names=("Question", "Clause"),
    ),
    "boolq": Templates(
        train=(
            Template("Read the passage and answer the question with yes or no.", _NO_YES),
            Template("According to the passage, is the answer to the question yes or no?", _NO_YES),
            Template("Is the statement that the question asks about true or false?", ("false", "true")),
            Template("Answer the question from the passage: true or false?", ("false", "true")),
        ),
        held_out=(
            Template("Given the passage, reply to the question with yes or no.", _NO_YES),
            Template("Say if what is asked is true or false.", ("false", "true")),
        ),
        names=("Question", "Passage"),
    ),
    "bbc": Templates(
        train=(
            Template("What is this article about: business, entertainment, politics, sport or technology?", _TOPICS),
            Template(
                "Choose a section for the article: business, entertainment, politics, sport, technology.", _TOPICS
            ),
            Template("Is this article about sport? Answer yes or no.", ("no", "no", "no", "yes", "no")),
            Template("Is this article about business? Answer yes or no.", ("yes", "no", "no", "no", "no")),
        ),
        held_out=(
            Template("Name the topic of the article: business, entertainment, politics, sport or technology.", _TOPICS),
            Template("Say whether the article is about politics. Reply yes or no.", ("no", "no", "yes", "no", "no")),
        ),
    ),
}

# What a teacher is asked about a text; it has no right answer, so the teacher's is the output.
OPEN: tuple[str, ...] = (
    "Name the topic of this headline in one or two words.",
    "Write the headline as a question.",
    "Explain this headline to a child in one sentence.",
    "What might happen next? Answer in one sentence.",
    "Write a short answer to this headline.",
    "Say the same as this headline in other words.",
)
