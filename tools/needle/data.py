"""Synthetic questions over long documents, for needle-7m.

A sample is a chat: one user turn that holds a long document with facts hidden in it, then several
turns of question and answer about those facts. The answers' tokens are marked, so that the loss can
weigh them and accuracy can be measured on them alone.
"""

import random

import numpy as np

ADJECTIVES = """
    amber ancient arctic brass bright broken bronze calm cedar clever copper coral crimson
    crooked curious dusty eager early eastern faded fallen fearless floral foggy frozen gentle
    giant gilded glass golden granite grateful hidden hollow humble icy idle indigo iron ivory
    jagged jolly khaki lively lonely loyal lucky lunar marble mellow merry mighty misty modest
    mossy narrow noble northern oaken olive opal orange pale patient pearl plain polar polite
    proud purple quick quiet rapid rustic sandy scarlet secret shady silent silver simple sleepy
    smooth solar southern speedy steady stormy stout sturdy sunny swift tall tidy timid tiny
    tranquil turquoise velvet violet vivid warm western wild windy wise wooden yellow young
    zealous
""".split()

NOUNS = """
    anchor apple arrow badger balloon barrel basket beacon bell bicycle blanket boat bottle
    bridge bucket butterfly cabin cactus camel candle canyon carpet castle cellar chapel chimney
    clock cloud compass cottage cradle crane crown desert dolphin dragon drum eagle engine
    falcon feather fence ferry fiddle forest fountain fox garden gate ginger glacier goose grove
    hammer harbor harp hawk hedge helmet heron hill horse island jacket jaguar kettle kite
    ladder lagoon lamp lantern lemon library lighthouse lion lizard locket machine magnet mango
    maple market meadow melon mill mirror monkey mountain museum needle nest oak oasis ocean
    orchard organ otter owl paddle palace panther parrot pebble pencil pepper piano pigeon
    pillow pine pirate planet pond prairie pump pyramid quarry rabbit raft raven reef ribbon
    river robin rocket rooster saddle salmon satchel school scooter seal shell ship shovel
    sparrow spider squirrel stable station stove stream street sundial swan table tavern temple
    tent tiger torch tower tractor trail train trumpet tulip tunnel turtle umbrella valley
    vessel village violin wagon walnut walrus waterfall whale wheel willow window wolf workshop
    yacht zebra
""".split()

FIRST_NAMES = """
    Ada Alan Alma Amir Anna Anton Asha Astrid Bela Boris Bruno Carla Cesar Chen Clara Dara David
    Diego Dina Edgar Elena Elif Emil Erik Esther Fatima Felix Fiona Frida Gita Goran Greta Hana
    Hassan Hugo Ida Ines Ingrid Ivan Jamal Jana Joel Jonas Julia Kai Karim Keiko Klara Lars
    Layla Lena Leo Lin Lucia Luka Mara Marco Maria Mei Mira Mona Nadia Nils Nina Noor Olga Omar
    Oscar Pablo Petra Pia Quinn Rafael Rana Rita Rosa Samir Sara Selma Sofia Stefan Tara Theo
    Tomas Uma Vera Viktor Wanda Yara Yusuf Zoe
""".split()

LAST_NAMES = """
    Abbott Adler Baker Banks Barlow Becker Bennett Berg Bishop Blake Brandt Brook Carver Castro
    Chavez Cole Conrad Costa Dale Dietrich Doyle Drake Ekman Ellis Farrow Fischer Flores Forde
    Frost Garcia Grant Haas Hale Hansen Hardy Hoffman Holt Ibarra Irving Jansen Jensen Keller
    Khan Knox Kovacs Kruger Lambert Larsen Lindt Lopez Marsh Meyer Moreno Moss Nagel Novak Olsen
    Ortega Palmer Park Patel Pierce Quist Ramos Reed Rossi Roth Sato Schmidt Shaw Silva Stone
    Strand Suarez Tanaka Thorne Torres Vance Vega Voss Wagner Walsh Webb Weiss Wolff Yamada York
    Zeller Ziegler
""".split()

CITIES = """
    Accra Adelaide Algiers Amman Antwerp Athens Auckland Baku Bamako Bangkok Basel Beirut
    Belgrade Bergen Berlin Bogota Bologna Boston Bremen Bristol Brno Bruges Cairo Calgary
    Caracas Chennai Chicago Cologne Cordoba Dakar Dallas Delhi Denver Dublin Durban Florence
    Geneva Genoa Ghent Glasgow Graz Hamburg Hanoi Harare Havana Helsinki Houston Jakarta Kampala
    Karachi Kigali Krakow Kyoto Lagos Leeds Leipzig Lima Lisbon London Luanda Lusaka Lyon Madrid
    Malaga Manila Melbourne Milan Mumbai Munich Nairobi Naples Nice Odessa Osaka Oslo Ottawa
    Palermo Paris Perth Porto Prague Quito Rabat Riga Rome Sapporo Seoul Seville Sofia Stockholm
    Sydney Tallinn Tampere Tbilisi Tokyo Toronto Tunis Turin Utrecht Valencia Vienna Vilnius
    Warsaw Zagreb Zurich
""".split()

JOBS = """
    architect astronomer baker barber biologist botanist butcher carpenter chemist clerk
    composer cook dancer dentist designer doctor driver editor electrician engineer farmer
    fisher florist gardener geologist historian illustrator jeweler journalist judge lawyer
    librarian linguist mason mechanic miner musician nurse optician painter pharmacist
    photographer physicist pilot plumber poet potter printer professor sailor sculptor singer
    surgeon surveyor tailor teacher translator waiter weaver welder writer
""".split()

VERBS = """
    admired answered arranged borrowed brought built called carried chose cleaned climbed
    collected counted crossed described discovered drew entered explained finished fixed
    followed found gathered guarded heard helped hired inspected joined kept knew left lifted
    liked loved made measured met moved noticed opened ordered packed painted passed planned
    pulled pushed raised reached remembered repaired rented returned saved searched sent showed
    sketched sold studied tested took traded visited waited watched won wrote
""".split()

TIMES = [
    "in the morning",
    "after lunch",
    "before dawn",
    "late at night",
    "on Monday",
    "on Friday",
    "last winter",
    "in early spring",
    "during the storm",
    "at noon",
    "every summer",
    "two days later",
    "a week earlier",
    "without a word",
    "as usual",
    "for the first time",
    "once again",
    "at the weekend",
    "in the evening",
    "by accident",
]

KINDS = ("code", "multi", "person", "chain", "pair")
KIND_WEIGHTS = (45, 10, 22, 13, 10)


def filler_sentence(r):
    """One sentence that states no fact anyone asks for. `r`: random.Random."""
    template = r.randrange(8)
    adjective, noun, adjective2, noun2 = (
        r.choice(ADJECTIVES),
        r.choice(NOUNS),
        r.choice(ADJECTIVES),
        r.choice(NOUNS),
    )
    first, city, verb, when, job = (
        r.choice(FIRST_NAMES),
        r.choice(CITIES),
        r.choice(VERBS),
        r.choice(TIMES),
        r.choice(JOBS),
    )
    return [
        f"The {adjective} {noun} stood near the {noun2}.",
        f"{first} {verb} the {adjective} {noun} {when}.",
        f"The {job} {verb} a {noun} and a {adjective2} {noun2} {when}.",
        f"In {city}, a {adjective} {noun} is rarely seen {when}.",
        f"{first} and the {job} {verb} the {noun} in {city}.",
        f"Nobody {verb} the {adjective2} {noun2} {when}.",
        f"{when[0].upper() + when[1:]}, the {job} {verb} the {noun} by the {adjective2} {noun2}.",
        f"There was a {adjective} {noun} between the {noun2} and the {adjective2} "
        f"{r.choice(NOUNS)}.",
    ][template]


def synthetic_paragraph(r):
    return " ".join(filler_sentence(r) for _ in range(r.randint(3, 9)))


def number(r):
    """Five to seven digits."""
    return str(r.randrange(10**4, 10 ** r.choice((5, 6, 7))))


class Facts:
    """Draws the facts of one document; a key never repeats in it.

    Each kind's method returns (the sentences that state it, a question, the answer).
    """

    def __init__(self, r, words):
        self.r, self.words, self.used = r, words, set()

    def _fresh(self, make):
        while True:
            key = make()
            if key not in self.used:
                self.used.add(key)
                return key

    def code(self):
        """A number under a two-word key."""
        r = self.r
        if r.random() < 0.5:
            key = self._fresh(lambda: f"{r.choice(ADJECTIVES)} {r.choice(NOUNS)}")
        else:
            key = self._fresh(lambda: f"{r.choice(self.words)} {r.choice(self.words)}")
        value = number(r)
        fact = r.choice(
            (
                f"Remember that the access code of the {key} is {value}.",
                f"Note: the code for the {key} is {value}.",
                f"The {key} has the code {value}.",
                f"The secret code of the {key} is {value}.",
            )
        )
        question = r.choice(
            (
                f"What is the code of the {key}?",
                f"Which code belongs to the {key}?",
                f"Give me the access code for the {key}.",
                f"What is the secret code of the {key}?",
            )
        )
        return [fact], question, f"The code of the {key} is {value}."

    def multi(self):
        """Two to four numbers under one key, each in a sentence of its own."""
        r = self.r
        key = self._fresh(lambda: f"{r.choice(ADJECTIVES)} {r.choice(NOUNS)}")
        values = [number(r) for _ in range(r.choice((2, 2, 3, 4)))]
        facts = [f"One of the codes of the {key} is {value}." for value in values]
        answer = f"The codes of the {key} are " + ", ".join(values) + "."
        return facts, f"List all codes of the {key}.", answer

    def person(self):
        """Where someone lives, what they do, or what they own."""
        r = self.r
        key = self._fresh(lambda: f"{r.choice(FIRST_NAMES)} {r.choice(LAST_NAMES)}")
        city, job = r.choice(CITIES), r.choice(JOBS)
        which = r.randrange(3)
        if which == 0:
            fact = r.choice((f"{key} lives in {city}.", f"The home of {key} is in {city}."))
            return [fact], f"Where does {key} live?", f"{key} lives in {city}."
        if which == 1:
            fact = r.choice((f"{key} works as a {job}.", f"By trade, {key} is a {job}."))
            return [fact], f"What is the job of {key}?", f"{key} works as a {job}."
        thing = f"{r.choice(ADJECTIVES)} {r.choice(NOUNS)}"
        fact = r.choice((f"{key} owns a {thing}.", f"The {thing} belongs to {key}."))
        return [fact], f"What does {key} own?", f"{key} owns a {thing}."

    def chain(self):
        """A variable set to a variable set to ... a number: two to four hops."""
        r = self.r
        letters = "ABCDEFGHJKLMNPQRSTUVWXYZ"
        names = [
            self._fresh(lambda: "".join(r.choice(letters) for _ in range(3)))
            for _ in range(r.choice((2, 2, 3, 3, 4)))
        ]
        value = number(r)
        facts = [f"Set {names[0]} to {value}."]
        facts += [f"Set {to} to {source}." for source, to in zip(names, names[1:])]
        answer = f"{' = '.join(reversed(names))} = {value}."
        return facts, f"What is the value of {names[-1]}?", answer

    def pair(self):
        """A record of six hexadecimal digits that maps to another."""
        r = self.r
        key = self._fresh(lambda: "%06x" % r.randrange(16**6))
        fact = f'The record "{key}" maps to "{"%06x" % r.randrange(16**6)}".'
        return [fact], f'What does the record "{key}" map to?', fact

    def draw(self, kind=None):
        """-> kind, sentences, question, answer."""
        kind = kind or self.r.choices(KINDS, KIND_WEIGHTS)[0]
        return (kind,) + getattr(self, kind)()


class Corpus:
    """Filler text, tokenised once: flat ids, where paragraphs start, where sentences end."""

    def __init__(self, tokenizer, paragraphs):
        flat, starts, bounds, size = [], [], [], 0
        blank_line = tokenizer.encode("\n\n", add_special_tokens=False).ids
        dot = tokenizer.token_to_id(".")
        for encoding in tokenizer.encode_batch(paragraphs, add_special_tokens=False):
            ids = encoding.ids
            starts.append(size)
            bounds += [
                size + i + 1
                for i, token in enumerate(ids[:-1])
                if token == dot and tokenizer.id_to_token(ids[i + 1]).startswith("Ġ")
            ]
            flat.append(ids + blank_line)
            size += len(ids) + len(blank_line)
        self.flat = np.concatenate([np.asarray(ids, np.int32) for ids in flat])
        self.starts, self.bounds = np.asarray(starts), np.asarray(bounds)


class Sampler:
    """Draws samples. `corpora`: list of Corpus; `words`: the words that keys are made of."""

    def __init__(self, tokenizer, corpora, words, seed):
        self.tokenizer, self.corpora, self.words = tokenizer, corpora, words
        self.r, self.g = random.Random(seed), np.random.default_rng(seed)
        self.bos = [tokenizer.token_to_id("<|begin_of_text|>")]
        self.user = self._encode("<|start_header_id|>user<|end_header_id|>\n\n")
        self.assistant = self._encode("<|start_header_id|>assistant<|end_header_id|>\n\n")
        self.end_of_turn = [tokenizer.token_to_id("<|eot_id|>")]
        self.blank_line = self._encode("\n\n")

    def _encode(self, text):
        return self.tokenizer.encode(text, add_special_tokens=False).ids

    def filler(self, count):
        """`count` tokens of contiguous filler and the offsets where a sentence may be put in."""
        corpus = self.corpora[int(self.g.integers(len(self.corpora)))]
        start = int(corpus.starts[int(self.g.integers(len(corpus.starts)))])
        if start + count > len(corpus.flat):
            last = max(0, len(corpus.flat) - count)
            start = int(corpus.starts[np.searchsorted(corpus.starts, last, side="right") - 1])
        ids = corpus.flat[start : start + count]
        if len(ids) < count:
            ids = np.concatenate([ids, corpus.flat[: count - len(ids)]])
        low, high = np.searchsorted(corpus.bounds, [start + 1, start + count])
        return ids, corpus.bounds[low:high] - start

    def _turns(self, facts, asked):
        """The questions and answers: ids, answer mask, (kind, answer start, answer end)."""
        ids, mask, spans = [], [], []
        for i, index in enumerate(asked):
            kind, _, question, answer = facts[index]
            question_ids = self._encode(question) + self.end_of_turn + self.assistant
            answer_ids = self._encode(answer) + self.end_of_turn
            if i:
                question_ids = self.user + question_ids
            start = len(ids) + len(question_ids)
            spans.append((kind, start, start + len(answer_ids)))
            ids += question_ids + answer_ids
            mask += [0] * len(question_ids) + [1] * len(answer_ids)
        return ids, mask, spans

    def _order(self, needles, facts):
        """The order of the facts' sentences; those of one fact keep theirs."""
        r = self.r
        order = list(range(len(needles)))
        by_fact = list(range(facts))
        r.shuffle(by_fact)
        if r.random() >= 0.5:
            return [o for fact in by_fact for o in order if needles[o][0] == fact]
        r.shuffle(order)
        sentences = {}
        for o in order:
            sentences.setdefault(needles[o][0], []).append(o)
        in_order = {fact: iter(sorted(own)) for fact, own in sentences.items()}
        return [next(in_order[needles[o][0]]) for o in order]

    def sample(self, length, max_facts=None, max_questions=12, kind=None, depth=None):
        """-> ids (length + 1,), answer mask (length + 1,), [(kind, answer start, answer end)].

        `kind` fixes the kind of all facts; `depth` (0 to 1) puts all of them at one place.
        """
        r = self.r
        count = max_facts or max(
            1, min(96, r.randint(max(1, length // 256), max(2, length // 64)))
        )
        source = Facts(r, self.words)
        facts = [source.draw(kind) for _ in range(count)]
        questions = r.randint(max(1, min(4, count)), max_questions) if max_questions > 1 else 1
        asked = r.sample(range(count), min(count, questions))
        tail, tail_mask, spans = self._turns(facts, asked)
        needles = [(i, self._encode(" " + s)) for i, fact in enumerate(facts) for s in fact[1]]
        room = length + 1 - len(self.bos) - len(self.user) - len(self.blank_line) - len(tail)
        room -= sum(len(ids) for _, ids in needles)
        if room < 16:
            fewer = max(1, max_questions // 2)
            return self.sample(length, max(1, count // 2), fewer, kind, depth)

        ids, cuts = self.filler(room)
        if len(cuts) == 0:
            cuts = np.asarray([len(ids)])
        if depth is None:
            positions = np.sort(self.g.choice(cuts, len(needles)))
            order = self._order(needles, count)
        else:
            nearest = int(np.argmin(np.abs(cuts - depth * len(ids))))
            positions = np.full(len(needles), cuts[nearest])
            order = range(len(needles))
        parts, last = [self.bos, self.user], 0
        for position, o in zip(positions, order):
            parts += [ids[last:position], needles[o][1]]
            last = position
        parts += [ids[last:], self.blank_line]
        document = np.concatenate([np.asarray(part, np.int32) for part in parts])
        tokens = np.concatenate([document, np.asarray(tail, np.int32)])
        mask = np.concatenate([np.zeros(len(document), np.uint8), np.asarray(tail_mask, np.uint8)])
        shift = len(document)
        return tokens, mask, [(kind_, a + shift, b + shift) for kind_, a, b in spans]
