#include "eval/words.h"

#include <sstream>

namespace lserve {
namespace {

constexpr const char* kAdjectives =
    "amber ancient arctic brass bright broken bronze calm cedar clever copper coral crimson "
    "crooked curious dusty eager early eastern faded fallen fearless floral foggy frozen "
    "gentle giant gilded glass golden granite grateful hidden hollow humble icy idle indigo "
    "iron ivory jagged jolly khaki lively lonely loyal lucky lunar marble mellow merry mighty "
    "misty modest mossy narrow noble northern oaken olive opal orange pale patient pearl "
    "plain polar polite proud purple quick quiet rapid rustic sandy scarlet secret shady "
    "silent silver simple sleepy smooth solar southern speedy steady stormy stout sturdy "
    "sunny swift tall tidy timid tiny tranquil turquoise velvet violet vivid warm western "
    "wild windy wise wooden yellow young zealous";

constexpr const char* kNouns =
    "anchor apple arrow badger balloon barrel basket beacon bell bicycle blanket boat bottle "
    "bridge bucket butterfly cabin cactus camel candle canyon carpet castle cellar chapel "
    "chimney clock cloud compass cottage cradle crane crown desert dolphin dragon drum eagle "
    "engine falcon feather fence ferry fiddle forest fountain fox garden gate ginger glacier "
    "goose grove hammer harbor harp hawk hedge helmet heron hill horse island jacket jaguar "
    "kettle kite ladder lagoon lamp lantern lemon library lighthouse lion lizard locket "
    "machine magnet mango maple market meadow melon mill mirror monkey mountain museum needle "
    "nest oak oasis ocean orchard organ otter owl paddle palace panther parrot pebble pencil "
    "pepper piano pigeon pillow pine pirate planet pond prairie pump pyramid quarry rabbit "
    "raft raven reef ribbon river robin rocket rooster saddle salmon satchel school scooter "
    "seal shell ship shovel sparrow spider squirrel stable station stove stream street "
    "sundial swan table tavern temple tent tiger torch tower tractor trail train trumpet "
    "tulip tunnel turtle umbrella valley vessel village violin wagon walnut walrus waterfall "
    "whale wheel willow window wolf workshop yacht zebra";

constexpr const char* kFirstNames =
    "Ada Alan Alma Amir Anna Anton Asha Astrid Bela Boris Bruno Carla Cesar Chen Clara Dara "
    "David Diego Dina Edgar Elena Elif Emil Erik Esther Fatima Felix Fiona Frida Gita Goran "
    "Greta Hana Hassan Hugo Ida Ines Ingrid Ivan Jamal Jana Joel Jonas Julia Kai Karim Keiko "
    "Klara Lars Layla Lena Leo Lin Lucia Luka Mara Marco Maria Mei Mira Mona Nadia Nils Nina "
    "Noor Olga Omar Oscar Pablo Petra Pia Quinn Rafael Rana Rita Rosa Samir Sara Selma Sofia "
    "Stefan Tara Theo Tomas Uma Vera Viktor Wanda Yara Yusuf Zoe";

constexpr const char* kLastNames =
    "Abbott Adler Baker Banks Barlow Becker Bennett Berg Bishop Blake Brandt Brook Carver "
    "Castro Chavez Cole Conrad Costa Dale Dietrich Doyle Drake Ekman Ellis Farrow Fischer "
    "Flores Forde Frost Garcia Grant Haas Hale Hansen Hardy Hoffman Holt Ibarra Irving Jansen "
    "Jensen Keller Khan Knox Kovacs Kruger Lambert Larsen Lindt Lopez Marsh Meyer Moreno Moss "
    "Nagel Novak Olsen Ortega Palmer Park Patel Pierce Quist Ramos Reed Rossi Roth Sato "
    "Schmidt Shaw Silva Stone Strand Suarez Tanaka Thorne Torres Vance Vega Voss Wagner Walsh "
    "Webb Weiss Wolff Yamada York Zeller Ziegler";

constexpr const char* kCities =
    "Accra Adelaide Algiers Amman Antwerp Athens Auckland Baku Bamako Bangkok Basel Beirut "
    "Belgrade Bergen Berlin Bogota Bologna Boston Bremen Bristol Brno Bruges Cairo Calgary "
    "Caracas Chennai Chicago Cologne Cordoba Dakar Dallas Delhi Denver Dublin Durban Florence "
    "Geneva Genoa Ghent Glasgow Graz Hamburg Hanoi Harare Havana Helsinki Houston Jakarta "
    "Kampala Karachi Kigali Krakow Kyoto Lagos Leeds Leipzig Lima Lisbon London Luanda Lusaka "
    "Lyon Madrid Malaga Manila Melbourne Milan Mumbai Munich Nairobi Naples Nice Odessa Osaka "
    "Oslo Ottawa Palermo Paris Perth Porto Prague Quito Rabat Riga Rome Sapporo Seoul Seville "
    "Sofia Stockholm Sydney Tallinn Tampere Tbilisi Tokyo Toronto Tunis Turin Utrecht "
    "Valencia Vienna Vilnius Warsaw Zagreb Zurich";

constexpr const char* kJobs =
    "architect astronomer baker barber biologist botanist butcher carpenter chemist clerk "
    "composer cook dancer dentist designer doctor driver editor electrician engineer farmer "
    "fisher florist gardener geologist historian illustrator jeweler journalist judge lawyer "
    "librarian linguist mason mechanic miner musician nurse optician painter pharmacist "
    "photographer physicist pilot plumber poet potter printer professor sailor sculptor "
    "singer surgeon surveyor tailor teacher translator waiter weaver welder writer";

constexpr const char* kVerbs =
    "admired answered arranged borrowed brought built called carried chose cleaned climbed "
    "collected counted crossed described discovered drew entered explained finished fixed "
    "followed found gathered guarded heard helped hired inspected joined kept knew left "
    "lifted liked loved made measured met moved noticed opened ordered packed painted passed "
    "planned pulled pushed raised reached remembered repaired rented returned saved searched "
    "sent showed sketched sold studied tested took traded visited waited watched won wrote";

constexpr const char* kTimes =
    "in the morning|after lunch|before dawn|late at night|on Monday|on Friday|last winter|in "
    "early spring|during the storm|at noon|every summer|two days later|a week earlier|without "
    "a word|as usual|for the first time|once again|at the weekend|in the evening|by accident";

std::vector<std::string> Split(const char* text, char separator) {
  std::vector<std::string> words;
  std::istringstream stream(text);
  for (std::string word; std::getline(stream, word, separator);) {
    words.push_back(std::move(word));
  }
  return words;
}

}  // namespace

const WordLists& Words() {
  static const WordLists lists = {
      .adjectives = Split(kAdjectives, ' '),
      .nouns = Split(kNouns, ' '),
      .first_names = Split(kFirstNames, ' '),
      .last_names = Split(kLastNames, ' '),
      .cities = Split(kCities, ' '),
      .jobs = Split(kJobs, ' '),
      .verbs = Split(kVerbs, ' '),
      .times = Split(kTimes, '|'),
  };
  return lists;
}

}  // namespace lserve
