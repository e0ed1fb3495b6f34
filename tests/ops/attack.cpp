// The CPU search against itself: every instruction set must return the bits of the portable one, on
// random shapes, strides, element types and values, many of them chosen to hurt.
//
//   attack ROUNDS SEED
//
// Prints what it did, and fails on the first difference. tests/ops/test_attack.py builds it, also
// with sanitizers and for another machine, which must print the same digests.
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <map>
#include <random>
#include <string>
#include <vector>

#include "../../csrc/cpu/dispatch.h"
#include "../../csrc/cpu/int8_filter/filter.h"
#include "../../csrc/cpu/search.h"
#include "../../csrc/cpu/top_codes/search.h"
#include "../../csrc/elements.h"

namespace vqvae_fast {
namespace {

using Random = std::mt19937_64;

int64_t uniform(Random& random, int64_t least, int64_t most) {
  return std::uniform_int_distribution<int64_t>(least, most)(random);
}
bool one_in(Random& random, int64_t n) { return uniform(random, 1, n) == 1; }

// Sizes of all orders of magnitude.
int64_t size(Random& random, int64_t least, int64_t most) {
  const double exponent = std::uniform_real_distribution<double>(
      std::log2(double(least)), std::log2(double(most) + 1))(random);
  return std::min(most, int64_t(std::exp2(exponent)));
}

void narrow(double value, float* out) { *out = float(value); }
void narrow(double value, double* out) { *out = value; }
void narrow(double value, BFloat16* out) { out->bits = uint16_t(to_bits(float(value)) >> 16); }
void narrow(double value, Half* out) {  // cut off, and what is too large is infinite
  const uint32_t bits = to_bits(float(value));
  const uint32_t sign = bits >> 16 & 0x8000u;
  const int exponent = int(bits >> 23 & 0xff) - 127;
  const uint32_t mantissa = (bits & 0x7fffffu) | 0x800000u;
  uint32_t magnitude = 0;
  if (exponent == 128) {
    magnitude = 0x7c00u | (bits & 0x7fffffu ? 0x200u : 0u);
  } else if (exponent > 15) {
    magnitude = 0x7c00u;
  } else if (exponent >= -14) {
    magnitude = uint32_t(exponent + 15) << 10 | (mantissa >> 13 & 0x3ffu);
  } else if (exponent >= -24) {
    magnitude = mantissa >> (-exponent - 1);
  }
  out->bits = uint16_t(sign | magnitude);
}

// Rows [count, dim] of doubles, as hard as chance wants them.
std::vector<double> values(Random& random, int64_t count, int64_t dim) {
  std::normal_distribution<double> normal;
  std::vector<double> all(count * dim);
  const int64_t clusters = one_in(random, 4) ? uniform(random, 1, 40) : 0;
  const double spread = std::exp2(double(uniform(random, -20, 0)));
  std::vector<double> centres(clusters * dim);
  for (double& c : centres) c = normal(random);
  const bool grid = one_in(random, 4), spikes = one_in(random, 6), decay = one_in(random, 5);
  for (int64_t n = 0; n < count; ++n) {
    const int64_t cluster = clusters ? uniform(random, 0, clusters - 1) : 0;
    const double size_of_row = spikes && one_in(random, 9) ? 1e3 : 1;
    for (int64_t d = 0; d < dim; ++d) {
      double v = normal(random) * size_of_row;
      if (clusters) v = centres[cluster * dim + d] + spread * v;
      if (decay) v *= std::exp2(-10.0 * double(d) / double(dim));
      if (grid) v = std::round(v * 2);
      all[n * dim + d] = v;
    }
  }
  return all;
}

// Stretches both along a few common directions, as latents and codes of a trained model are.
void stretch(Random& random, int64_t dim, std::vector<double>& z, std::vector<double>& e) {
  std::normal_distribution<double> normal;
  const int64_t count = uniform(random, 1, 12);
  const double length = std::exp2(double(uniform(random, -1, 14)));
  std::vector<double> directions(count * dim);
  for (double& v : directions) v = normal(random) / std::sqrt(double(dim));
  for (auto* all : {&z, &e}) {
    for (size_t row = 0; row < all->size(); row += dim) {
      for (int64_t i = 0; i < count; ++i) {
        const double along = length * normal(random) * std::exp2(-double(i));
        for (int64_t d = 0; d < dim; ++d) (*all)[row + d] += along * directions[i * dim + d];
      }
    }
  }
}

struct Shape {
  int64_t rows, codes, dim;
};

Shape shape(Random& random) {
  if (one_in(random, 2)) {  // where the filter serves
    return {size(random, 9, 600), size(random, 256, 9000), size(random, 8, 130)};
  }
  return {size(random, 1, 300), size(random, 1, 3000), size(random, 1, 300)};
}

template <class In>
struct Case {
  std::vector<In> z, codebook;
  Rows<const In> rows;
  Codes<In> codes;
};

template <class In>
Case<In> make_case(Random& random) {
  const Shape s = shape(random);
  std::vector<double> z = values(random, s.rows, s.dim), e = values(random, s.codes, s.dim);
  if (one_in(random, 3)) stretch(random, s.dim, z, e);
  if (one_in(random, 3)) {  // rows on the codes, or beside them
    const double off = one_in(random, 2) ? 0 : 1e-3;
    for (int64_t n = 0; n < s.rows; ++n) {
      const int64_t k = uniform(random, 0, s.codes - 1);
      for (int64_t d = 0; d < s.dim; ++d) {
        double& v = z[n * s.dim + d];
        v = e[k * s.dim + d] + off * v;
      }
    }
  }
  if (one_in(random, 4)) {  // codes again and again
    const int64_t different = uniform(random, 1, std::min<int64_t>(s.codes, 20));
    for (size_t i = different * s.dim; i < e.size(); ++i) e[i] = e[i - different * s.dim];
  }
  if (one_in(random, 4)) {  // copies of a few, at any places; their zeros may change sign
    const int64_t different = uniform(random, 1, std::min<int64_t>(s.codes, 4));
    const int64_t of_ten = uniform(random, 1, 10);
    const bool zero = one_in(random, 3);
    for (int64_t k = different; k < s.codes; ++k) {
      if (uniform(random, 1, 10) > of_ten) continue;
      const int64_t from = uniform(random, 0, different - 1);
      for (int64_t d = 0; d < s.dim; ++d) {
        double& v = e[k * s.dim + d];
        v = zero ? 0 : e[from * s.dim + d];
        if (v == 0 && one_in(random, 2)) v = -v;
      }
    }
  }
  const double offsets[] = {0, 0, 0, 1000, -1e5};
  const double offset = offsets[uniform(random, 0, 4)];
  const bool wide = sizeof(In) > 2 && one_in(random, 3);
  const double scale = std::exp2(double(wide ? uniform(random, -140, 110) : 0));
  const double z_scale = one_in(random, 5) ? std::exp2(double(uniform(random, -20, 20))) : 1;
  for (double& v : z) v = (v * z_scale + offset) * scale;
  for (double& v : e) v = (v + offset) * scale;
  const double odd[] = {std::nan(""), HUGE_VAL, -HUGE_VAL, 1e30, 1e4, 3.4e38, -3e38, 0, 1e-45};
  for (auto* all : {&z, &e}) {
    for (int64_t i = one_in(random, 3) ? uniform(random, 1, 4) : 0; i > 0; --i) {
      (*all)[uniform(random, 0, int64_t(all->size()) - 1)] = odd[uniform(random, 0, 8)];
    }
  }
  // In memory: end to end, with gaps, or as a feature map whose elements lie apart.
  Case<In> made;
  const auto lay_out = [&](const std::vector<double>& from, int64_t count, std::vector<In>& to,
                           int64_t* row_stride, int64_t* element_stride) {
    const bool map = one_in(random, 4);
    const int64_t gap = one_in(random, 4) ? uniform(random, 1, 5) : 0;
    *row_stride = map ? 1 : s.dim + gap;
    *element_stride = map ? count + gap : 1;
    to.resize((count - 1) * *row_stride + (s.dim - 1) * *element_stride + 1);
    for (int64_t n = 0; n < count; ++n) {
      for (int64_t d = 0; d < s.dim; ++d) {
        narrow(from[n * s.dim + d], &to[n * *row_stride + d * *element_stride]);
      }
    }
  };
  int64_t row_stride = 0, element_stride = 0;
  lay_out(z, s.rows, made.z, &row_stride, &element_stride);
  made.rows = {made.z.data(), s.rows, s.dim, s.rows, 0, row_stride, element_stride};
  lay_out(e, s.codes, made.codebook, &row_stride, &element_stride);
  made.codes = {made.codebook.data(), s.codes, s.dim, row_stride, element_stride};
  return made;
}

// Serial, so that a failure repeats; it divides the work as that many threads would.
ThreadPool pool(int64_t threads) {
  return {threads, [](int64_t count, const std::function<void(int64_t)>& body) {
            for (int64_t i = 0; i < count; ++i) body(i);
          }};
}

template <class In>
struct Answer {
  std::vector<int64_t> indices;
  std::vector<Compute<In>> distances;
  std::vector<In> quantized;
};

template <class In>
Answer<In> search(const Case<In>& c, const char* isa, int64_t threads, bool packed) {
  select_instruction_set(isa);
  std::vector<char> bytes;
  if (packed) bytes = pack_for_searches(c.codes, pool(threads));
  const int64_t rows = c.rows.count, dim = c.rows.dim;
  Answer<In> answer{std::vector<int64_t>(rows, -1), std::vector<Compute<In>>(rows, -1),
                    std::vector<In>(rows * dim)};
  const Rows<In> quantized{answer.quantized.data(), rows, dim, rows, 0, dim, 1};
  search_codebook<In>(c.rows, c.codes, {bytes.data(), int64_t(bytes.size())}, answer.indices.data(),
                      answer.distances.data(), quantized, pool(threads));
  return answer;
}

// The k nearest codes of each row; nothing is quantized.
template <class In>
Answer<In> search_top(const Case<In>& c, int64_t k, const char* isa, int64_t threads, bool packed) {
  select_instruction_set(isa);
  std::vector<char> bytes;
  if (packed) bytes = pack_for_searches(c.codes, pool(threads));
  Answer<In> answer{std::vector<int64_t>(c.rows.count * k, -1),
                    std::vector<Compute<In>>(c.rows.count * k, -1),
                    {}};
  search_top_codes<In>(c.rows, c.codes, {bytes.data(), int64_t(bytes.size())}, k,
                       answer.indices.data(), answer.distances.data(), pool(threads));
  return answer;
}

template <class T>
bool same_bits(T a, T b) {
  return (std::isnan(a) && std::isnan(b)) || to_bits(a) == to_bits(b);
}

// All NaNs are equal here, too.
uint64_t word(int64_t value) { return uint64_t(value); }
uint64_t word(double value) { return std::isnan(value) ? ~uint64_t{0} : to_bits(value); }
uint64_t word(float value) { return std::isnan(value) ? ~uint64_t{0} : to_bits(value); }
uint64_t word(BFloat16 value) { return value.bits; }
uint64_t word(Half value) { return value.bits; }

// A digest is a number that differs where elements differ.
struct Digest {
  uint64_t value = 0;

  template <class T>
  void add(const std::vector<T>& elements) {
    for (const T& element : elements) {
      value = (value ^ word(element)) * 0x9e3779b97f4a7c15u;
      value ^= value >> 32;
    }
  }
};

struct Tally {
  Digest inputs, answers;  // the answers of the portable kernels
  int64_t cases = 0, rows = 0, measured = 0;
  std::map<std::string, int64_t> settled, settled_wide;  // by the filter of each instruction set
};

// What the filter itself settles: without it a comparison of instruction sets could be idle.
template <class In>
void count_settled(const InstructionSet& set, const Case<In>& c, int64_t threads, Tally& tally) {
  if constexpr (has_filter<In>) {
    const ListedCodes<In> codes = list_all(c.codes);
    if (set.filters == nullptr) return;
    const Int8Filter<In>& filter = *set.filters->filter(static_cast<const In*>(nullptr));
    if (!filter_serves(filter, c.rows, codes, pool(threads))) return;
    std::vector<int64_t> indices(c.rows.count), unsettled;
    std::vector<float> distances(c.rows.count);
    if (!filter_rows(filter, c.rows, codes, indices.data(), distances.data(), Rows<In>{},
                     pool(threads), unsettled)) {
      return;
    }
    const int64_t settled = c.rows.count - int64_t(unsettled.size());
    tally.settled[set.name] += settled;
    std::vector<float> centre(padded_dim(c.codes.dim));  // near enough
    for (int64_t d = 0; d < c.codes.dim; ++d) {
      centre[d] = widen(c.codes.row(0)[d * c.codes.element_stride]);
    }
    std::vector<float> reflections(reflections_size(c.codes.dim));
    std::vector<double> scratch(filter.wide_scratch_bytes(c.codes.dim) / sizeof(double));
    if (filter.find_wide(codes, centre.data(), scratch.data(), reflections.data()) > 0) {
      tally.settled_wide[set.name] += settled;
    }
  }
}

// Lets an instruction set measure every code, which the search does for small codebooks only.
// Returns whether the answers are the wanted ones, or the values need another search.
template <class In>
bool measures_alike(const Case<In>& c, const Answer<In>& wanted, const InstructionSet& set,
                    Tally& tally) {
  const int64_t rows = c.rows.count;
  if (c.codes.dim > kLongestMeasured) return true;
  std::vector<int64_t> indices(rows);
  std::vector<double> distances(rows);
  if (!set.engine<In>().measure_all(c.codes, c.rows, 0, rows, 0, c.codes.count,
                                    {indices.data(), distances.data()})) {
    return true;
  }
  tally.measured += rows;
  for (int64_t n = 0; n < rows; ++n) {
    if (indices[n] == wanted.indices[n] &&
        same_bits(Compute<In>(distances[n]), wanted.distances[n])) {
      continue;
    }
    std::printf("%s measures row %lld at %.17g from code %lld, expected %.17g from %lld\n",
                set.name, (long long)n, distances[n], (long long)indices[n],
                double(wanted.distances[n]), (long long)wanted.indices[n]);
    return false;
  }
  return true;
}

template <class In>
bool attack_top(Random& random, const Case<In>& c, int64_t k, int64_t threads, Tally& tally) {
  const Answer<In> wanted = search_top(c, k, "portable", 1, false);
  tally.answers.add(wanted.indices);
  tally.answers.add(wanted.distances);
  for (const InstructionSet* set : available_instruction_sets()) {
    const bool packed = one_in(random, 2);
    const Answer<In> found = search_top(c, k, set->name, threads, packed);
    for (int64_t i = 0; i < c.rows.count * k; ++i) {
      if (found.indices[i] == wanted.indices[i] &&
          same_bits(found.distances[i], wanted.distances[i])) {
        continue;
      }
      std::printf(
          "%s, %s, %d-byte elements, N %lld, K %lld, D %lld, %lld threads, row %lld: code %lld of "
          "%lld is %lld at %.17g, expected %lld at %.17g\n",
          set->name, packed ? "packed beforehand" : "packed in the call", int(sizeof(In)),
          (long long)c.rows.count, (long long)c.codes.count, (long long)c.rows.dim,
          (long long)threads, (long long)(i / k), (long long)(i % k), (long long)k,
          (long long)found.indices[i], double(found.distances[i]), (long long)wanted.indices[i],
          double(wanted.distances[i]));
      return false;
    }
  }
  return true;
}

template <class In>
bool attack(Random& random, Tally& tally) {
  const Case<In> c = make_case<In>(random);
  const int64_t threads = uniform(random, 1, 4);
  // How many random numbers follow depends on the machine's instruction sets, so k is drawn here.
  const int64_t k = size(random, 1, std::min<int64_t>(c.codes.count, 300));
  const Answer<In> wanted = search(c, "portable", 1, false);
  tally.inputs.add(c.z);
  tally.inputs.add(c.codebook);
  tally.answers.add(wanted.indices);
  tally.answers.add(wanted.distances);
  tally.answers.add(wanted.quantized);
  ++tally.cases;
  tally.rows += c.rows.count;
  for (const InstructionSet* set : available_instruction_sets()) {
    count_settled(*set, c, threads, tally);
    if (!measures_alike(c, wanted, *set, tally)) return false;
    const bool packed = one_in(random, 2);
    const Answer<In> found = search(c, set->name, threads, packed);
    for (int64_t n = 0; n < c.rows.count; ++n) {
      if (found.indices[n] == wanted.indices[n] &&
          same_bits(found.distances[n], wanted.distances[n]) &&
          std::memcmp(&found.quantized[n * c.rows.dim], &wanted.quantized[n * c.rows.dim],
                      c.rows.dim * sizeof(In)) == 0) {
        continue;
      }
      std::printf(
          "%s, %s, %d-byte elements, N %lld, K %lld, D %lld, %lld threads, row %lld: code %lld "
          "at %.17g, expected %lld at %.17g\n",
          set->name, packed ? "packed beforehand" : "packed in the call", int(sizeof(In)),
          (long long)c.rows.count, (long long)c.codes.count, (long long)c.rows.dim,
          (long long)threads, (long long)n, (long long)found.indices[n], double(found.distances[n]),
          (long long)wanted.indices[n], double(wanted.distances[n]));
      return false;
    }
  }
  return attack_top(random, c, k, threads, tally);
}

}  // namespace
}  // namespace vqvae_fast

int main(int argc, char** argv) {
  using namespace vqvae_fast;
  if (argc != 3) {
    std::fprintf(stderr, "usage: attack ROUNDS SEED\n");
    return 2;
  }
  const long long rounds = std::atoll(argv[1]), seed = std::atoll(argv[2]);
  Tally tally;
  for (long long round = 0; round < rounds; ++round) {
    Random random(uint64_t(seed) << 32 ^ uint64_t(round));
    const int64_t type = uniform(random, 0, 5);
    const bool agreed = type == 0   ? attack<double>(random, tally)
                        : type == 1 ? attack<BFloat16>(random, tally)
                        : type == 2 ? attack<Half>(random, tally)
                                    : attack<float>(random, tally);
    if (!agreed) {
      std::printf("seed %lld, round %lld\n", seed, round);
      return 1;
    }
  }
  std::printf("inputs %llu answers %llu ", (unsigned long long)tally.inputs.value,
              (unsigned long long)tally.answers.value);
  std::printf("cases %lld rows %lld measured %lld\n", (long long)tally.cases, (long long)tally.rows,
              (long long)tally.measured);
  for (const auto& [name, rows] : tally.settled) {
    std::printf("%s.settled %lld %s.settled_wide %lld\n", name.c_str(), (long long)rows,
                name.c_str(), (long long)tally.settled_wide[name]);
  }
  return 0;
}
