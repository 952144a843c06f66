// The coordinatewise LSTM's steps and their backward pass, for float32 on a CPU.
//
// Coordinates are processed in blocks, small enough that everything a block needs stays in a core's cache: a unit's
// values in one block are COLUMNS vectors side by side. A forward step keeps only the state. The backward pass repeats
// a block's K steps from the state before them, then goes back through them, which costs less than memory bandwidth.
//
// The compiler's command line defines the macros HIDDEN, LAYERS, PREPROCESSED (0: the raw gradient; 1: appendix A),
// MOMENTA (the number of running means that are inputs, too) and RELATIVE (1: RNNprop; the gradient and its mean are
// divided by the root mean square and go through a layer with ELU, and the output through tanh).

#include <cmath>
#include <cstring>
#include <memory>

namespace {

// A tile of sums, TILE_ROWS by two vectors, must fit in the processor's vector registers.
#if defined(__AVX512F__)
constexpr int LANES = 16, TILE_ROWS = 10;  // 32 registers
#elif defined(__AVX2__)
constexpr int LANES = 8, TILE_ROWS = 5;  // 16
#elif defined(__aarch64__)
constexpr int LANES = 4, TILE_ROWS = 10;  // 32
#else
constexpr int LANES = 4, TILE_ROWS = 5;  // 16
#endif
typedef float vec __attribute__((vector_size(4 * LANES)));
typedef int bits __attribute__((vector_size(4 * LANES)));

constexpr int BLOCK = 32, COLUMNS = BLOCK / LANES, GATES = 4 * HIDDEN, FEATURES = 1 + PREPROCESSED + MOMENTA;
constexpr int INPUTS = RELATIVE ? HIDDEN : FEATURES;  // of the first layer
constexpr int GATE_VECTORS = (GATES + LANES - 1) / LANES;
constexpr float SMALLEST_SQUARE = 1e-16f;  // added under the root; smaller squares count as zero

typedef vec Row[COLUMNS];  // one number for every coordinate of a block

struct State {  // of one layer
    Row hidden[HIDDEN], cell[HIDDEN];
};

struct Momentum {  // running means of the gradient and of its square
    Row mean, square;
#if RELATIVE
    Row weight;  // what both are short of a mean
#endif
};

struct Memory {  // what is kept of a block from one step to the next
    State *layers;      // LAYERS of them
    Momentum *momenta;  // MOMENTA of them

    Memory(void *layers, void *momenta, long block = 0)
        : layers((State *)layers + block * LAYERS), momenta((Momentum *)momenta + block * MOMENTA) {}
};

struct Activations {  // of one layer, for the backward pass
    Row gates[GATES];  // input, forget, output, candidate
    Row tanh_cell[HIDDEN];
};

struct Step {
    Row features[FEATURES], encoded[RELATIVE ? HIDDEN : 1];
    Activations activations[LAYERS];
    State layers[LAYERS];  // after the step
    Momentum momenta[MOMENTA];

    Memory after() { return Memory(layers, momenta); }
    const Row *inputs() const { return RELATIVE ? encoded : features; }
};

constexpr int inputs_of(int layer) { return layer ? HIDDEN : INPUTS; }

// Where the parameters lie, in the module's order: all weights, all biases, the output's weight and bias, and those of
// the layer before the LSTM.
constexpr int weight_at(int layer) { return layer ? GATES * (INPUTS + HIDDEN + (layer - 1) * 2 * HIDDEN) : 0; }
constexpr int bias_at(int layer) { return weight_at(LAYERS) + layer * GATES; }
constexpr int OUTPUT_AT = bias_at(LAYERS), ENCODER_AT = OUTPUT_AT + HIDDEN + 1;

struct Rule {
    const float *parameters;
    float preprocessing;   // p of appendix A
    const double *decays;  // of the running means
    float output_scale;

    const float *weight(int layer) const { return parameters + weight_at(layer); }
    const float *bias(int layer) const { return parameters + bias_at(layer); }
    const float *output() const { return parameters + OUTPUT_AT; }
    const float *encoder() const { return parameters + ENCODER_AT; }
};

constexpr int largest_divisor(int number, int limit) {
    while (number % limit) limit--;
    return limit;
}

// 2^n e^r with n whole and |r| <= ln(2) / 2, by Taylor's series to r^7: relative error 5e-9 before rounding.
// Beyond |x| = 40, where sigmoid and tanh have long been flat, x is clamped; NaN stays NaN.
inline vec exp_limited(vec x) {
    const vec limit = vec{} + 40.0f;
    x = limit < x ? limit : x;
    x = -limit > x ? -limit : x;
    const vec shifted = x * 1.44269504f + 12582912.0f;  // adding 1.5 * 2^23 rounds to whole numbers
    const vec n = shifted - 12582912.0f;
    const vec r = x - n * 0.693359375f + n * 2.12194440e-4f;
    vec sum = r * (1 / 5040.0f) + 1 / 720.0f;
    sum = sum * r + 1 / 120.0f;
    sum = sum * r + 1 / 24.0f;
    sum = sum * r + 1 / 6.0f;
    sum = sum * r + 0.5f;
    sum = sum * r + 1.0f;
    sum = sum * r + 1.0f;
    return sum * (vec)(((bits)shifted << 23) + 0x3f800000);
}

inline vec tanh(vec x) { return 2.0f / (1.0f + exp_limited(-2.0f * x)) - 1.0f; }

// Two at the price of one division.
inline void sigmoid(vec &a, vec &b) {
    const vec below_a = 1.0f + exp_limited(-a), below_b = 1.0f + exp_limited(-b);
    const vec inverse = 1.0f / (below_a * below_b);
    a = inverse * below_b;
    b = inverse * below_a;
}

// out[r] = first[r] + sum over k < DEPTH of a[r * row_stride + k * stride] x[k], for r < ROWS; without `first` from
// `out` itself, so that several products can be added up.
template <int ROWS, int DEPTH>
inline void multiply(const float *a, int row_stride, int stride, const float *first, const Row *x, Row *out) {
    constexpr int rows = largest_divisor(ROWS, TILE_ROWS), columns = COLUMNS < 2 ? COLUMNS : 2;
    for (int r = 0; r < ROWS; r += rows)
        for (int c = 0; c < COLUMNS; c += columns) {
            vec sum[rows][columns];
#pragma GCC unroll 10
            for (int i = 0; i < rows; i++)
#pragma GCC unroll 2
                for (int j = 0; j < columns; j++) sum[i][j] = first ? vec{} + first[r + i] : out[r + i][c + j];
            for (int k = 0; k < DEPTH; k++)
#pragma GCC unroll 10
                for (int i = 0; i < rows; i++)
#pragma GCC unroll 2
                    for (int j = 0; j < columns; j++)
                        sum[i][j] += a[(r + i) * row_stride + k * stride] * x[k][c + j];
#pragma GCC unroll 10
            for (int i = 0; i < rows; i++)
#pragma GCC unroll 2
                for (int j = 0; j < columns; j++) out[r + i][c + j] = sum[i][j];
        }
}

// Appendix A: (log|g| / p, sign g), or (-1, e^p g) where the gradient is small.
void preprocess(const Rule &rule, const float *gradient, float *magnitude, float *direction) {
    const float smallest = std::exp(-rule.preprocessing), largest = std::exp(rule.preprocessing);
    for (int i = 0; i < BLOCK; i++) {
        const float size = std::fabs(gradient[i]), scaled = gradient[i] * largest;
        magnitude[i] = std::log(size < smallest ? smallest : size) / rule.preprocessing;
        direction[i] = scaled > 1 ? 1 : scaled < -1 ? -1 : scaled;
    }
}

// Updates the running means; the input is mean over root mean square. `before` and `after` may be the same.
void agree(double decay, const Row &gradient, const Momentum &before, Momentum &after, Row &ratio) {
    const float kept = decay, added = 1 - decay;
    for (int c = 0; c < COLUMNS; c++) {
        const vec mean = kept * before.mean[c] + added * gradient[c];
        const vec square = kept * before.square[c] + added * (gradient[c] * gradient[c]);
        vec size = square + SMALLEST_SQUARE;
        for (int i = 0; i < LANES; i++) size[i] = std::sqrt(size[i]);
        ratio[c] = mean / size;
        after.mean[c] = mean;
        after.square[c] = square;
    }
}

#if RELATIVE
// Updates the running means; the features are the gradient and its mean over the root mean square.
void compare(double decay, const Row &gradient, const Momentum &before, Momentum &after, Row *features) {
    const float kept = decay, added = 1 - decay;
    for (int c = 0; c < COLUMNS; c++) {
        const vec mean = kept * before.mean[c] + added * gradient[c];
        const vec square = kept * before.square[c] + added * (gradient[c] * gradient[c]);
        const vec weight = kept * before.weight[c] + added;
        vec size = square / weight + SMALLEST_SQUARE;
        for (int i = 0; i < LANES; i++) size[i] = std::sqrt(size[i]);
        features[0][c] = gradient[c] / size;
        features[1][c] = mean / weight / size;
        after.mean[c] = mean;
        after.square[c] = square;
        after.weight[c] = weight;
    }
}

// The layer before the LSTM: x, or e^x - 1 where x is negative.
void encode(const Rule &rule, Step &step) {
    const float *weight = rule.encoder();
    multiply<HIDDEN, FEATURES>(weight, FEATURES, 1, weight + HIDDEN * FEATURES, step.features, step.encoded);
    for (int h = 0; h < HIDDEN; h++)
        for (int c = 0; c < COLUMNS; c++) {
            const vec x = step.encoded[h][c];
            step.encoded[h][c] = x < 0.0f ? exp_limited(x) - 1.0f : x;
        }
}
#endif

// The first layer's inputs from the gradients of `count` coordinates.
void read_gradient(const Rule &rule, const float *gradient, int count, Memory before, Memory after, Step &step) {
    Row padded = {};
    std::memcpy(padded, gradient, count * sizeof(float));
#if RELATIVE
    compare(rule.decays[0], padded, before.momenta[0], after.momenta[0], step.features);
    encode(rule, step);
#else
    Row *features = step.features;
    std::memcpy(features[0], padded, sizeof(Row));
    if constexpr (PREPROCESSED) preprocess(rule, (float *)padded, (float *)features[0], (float *)features[1]);
    for (int m = 0; m < MOMENTA; m++)
        agree(rule.decays[m], padded, before.momenta[m], after.momenta[m], features[1 + PREPROCESSED + m]);
#endif
}

template <int LAYER>
void forward_layer(const Rule &rule, const Row *inputs, const State &before, State &after, Activations &activations) {
    constexpr int width = inputs_of(LAYER) + HIDDEN;
    const float *weight = rule.weight(LAYER);
    Row *gates = activations.gates;
    multiply<GATES, inputs_of(LAYER)>(weight, width, 1, rule.bias(LAYER), inputs, gates);
    multiply<GATES, HIDDEN>(weight + inputs_of(LAYER), width, 1, nullptr, before.hidden, gates);
    for (int h = 0; h < HIDDEN; h++)
        for (int c = 0; c < COLUMNS; c++) {
            vec in = gates[h][c], forget = gates[HIDDEN + h][c], out = gates[2 * HIDDEN + h][c];
            vec candidate = 2.0f * gates[3 * HIDDEN + h][c];
            sigmoid(in, forget);
            sigmoid(out, candidate);
            candidate = 2.0f * candidate - 1.0f;
            const vec cell = forget * before.cell[h][c] + in * candidate, tanh_cell = tanh(cell);
            gates[h][c] = in;
            gates[HIDDEN + h][c] = forget;
            gates[2 * HIDDEN + h][c] = out;
            gates[3 * HIDDEN + h][c] = candidate;
            activations.tanh_cell[h][c] = tanh_cell;
            after.cell[h][c] = cell;
            after.hidden[h][c] = out * tanh_cell;
        }
}

template <int LAYER>
void forward_layers(const Rule &rule, const Row *inputs, const State *before, State *after, Activations *activations) {
    forward_layer<LAYER>(rule, inputs, before[LAYER], after[LAYER], activations[LAYER]);
    if constexpr (LAYER + 1 < LAYERS)
        forward_layers<LAYER + 1>(rule, after[LAYER].hidden, before, after, activations);
}

// The output read from the last layer's hidden state, before it is scaled.
void read_out(const Rule &rule, Memory memory, Row &output) {
    multiply<1, HIDDEN>(rule.output(), HIDDEN, 1, rule.output() + HIDDEN, memory.layers[LAYERS - 1].hidden, &output);
    if constexpr (RELATIVE)
        for (int c = 0; c < COLUMNS; c++) output[c] = tanh(output[c]);
}

// One step of one block of `count` coordinates. `before` and `after` may be the same.
void forward_step(const Rule &rule, const float *gradient, int count, Memory before, Memory after, Step &step) {
    read_gradient(rule, gradient, count, before, after, step);
    forward_layers<0>(rule, step.inputs(), before.layers, after.layers, step.activations);
}

// The state of one block's backward pass, and the parameters' gradients gathered so far.
struct Backward {
    Row hidden[LAYERS][HIDDEN], cell[LAYERS][HIDDEN];  // dL/dh and dL/dc
    Row cotangent;                                     // dL/dg of the step
    Row output[HIDDEN], output_bias;                   // of the output's parameters, not yet summed over coordinates
#if RELATIVE
    Row encoded[HIDDEN];                                  // dL/d of the first layer's inputs
    Row encoder[HIDDEN][FEATURES], encoder_bias[HIDDEN];  // of its parameters, not yet summed over coordinates
#endif
    vec weights[INPUTS + HIDDEN + (LAYERS - 1) * 2 * HIDDEN][GATE_VECTORS];  // transposed
    vec biases[LAYERS][GATE_VECTORS];

    vec (*weights_of(int layer))[GATE_VECTORS] {
        return weights + (layer ? INPUTS + HIDDEN + (layer - 1) * 2 * HIDDEN : 0);
    }
};

// Swaps the off-diagonal D x D squares of every 2D x 2D square on the diagonal: for D = 1, 2, 4, ... a transposition.
template <int D>
inline void swap_squares(vec *m) {
    if constexpr (D < LANES) {
        bits keep, take;
        for (int j = 0; j < LANES; j++) {
            keep[j] = j & D ? LANES + j - D : j;
            take[j] = j & D ? LANES + j : j + D;
        }
        for (int i = 0; i < LANES; i++)
            if (!(i & D)) {
                const vec a = m[i], b = m[i + D];
#if defined(__clang__)
                for (int j = 0; j < LANES; j++) {
                    m[i][j] = keep[j] < LANES ? a[keep[j]] : b[keep[j] - LANES];
                    m[i + D][j] = take[j] < LANES ? a[take[j]] : b[take[j] - LANES];
                }
#else
                m[i] = __builtin_shuffle(a, b, keep);
                m[i + D] = __builtin_shuffle(a, b, take);
#endif
            }
        swap_squares<2 * D>(m);
    }
}

void transpose(const Row *gates, vec (*transposed)[GATE_VECTORS]) {
    for (int v = 0; v < GATE_VECTORS; v++)
        for (int c = 0; c < COLUMNS; c++) {
            vec square[LANES];
            for (int i = 0; i < LANES; i++) square[i] = v * LANES + i < GATES ? gates[v * LANES + i][c] : vec{};
            swap_squares<1>(square);
            for (int i = 0; i < LANES; i++) transposed[c * LANES + i][v] = square[i];
        }
}

// sums[k] += sum over coordinates of rows[k] gates, for k < ROWS.
template <int ROWS>
inline void add_outer(const Row *rows, const vec (*gates)[GATE_VECTORS], vec (*sums)[GATE_VECTORS]) {
    constexpr int columns = largest_divisor(GATE_VECTORS, 5), tile = largest_divisor(ROWS, TILE_ROWS == 5 ? 2 : 4);
    for (int k = 0; k < ROWS; k += tile)
        for (int v = 0; v < GATE_VECTORS; v += columns) {
            vec sum[tile][columns];
#pragma GCC unroll 4
            for (int i = 0; i < tile; i++)
#pragma GCC unroll 5
                for (int j = 0; j < columns; j++) sum[i][j] = sums[k + i][v + j];
            for (int b = 0; b < BLOCK; b++)
#pragma GCC unroll 4
                for (int i = 0; i < tile; i++)
#pragma GCC unroll 5
                    for (int j = 0; j < columns; j++)
                        sum[i][j] += ((const float *)rows[k + i])[b] * gates[b][v + j];
#pragma GCC unroll 4
            for (int i = 0; i < tile; i++)
#pragma GCC unroll 5
                for (int j = 0; j < columns; j++) sums[k + i][v + j] = sum[i][j];
        }
}

template <int LAYER>
void backward_layer(const Rule &rule, const Row *inputs, const State &before, Activations &activations, Backward &back) {
    constexpr int width = inputs_of(LAYER) + HIDDEN;
    Row *gates = activations.gates, *hidden = back.hidden[LAYER], *cell = back.cell[LAYER];
    for (int h = 0; h < HIDDEN; h++)
        for (int c = 0; c < COLUMNS; c++) {
            const vec in = gates[h][c], forget = gates[HIDDEN + h][c], out = gates[2 * HIDDEN + h][c];
            const vec candidate = gates[3 * HIDDEN + h][c], tanh_cell = activations.tanh_cell[h][c];
            const vec dh = hidden[h][c], dc = cell[h][c] + dh * out * (1.0f - tanh_cell * tanh_cell);
            gates[h][c] = dc * candidate * in * (1.0f - in);
            gates[HIDDEN + h][c] = dc * before.cell[h][c] * forget * (1.0f - forget);
            gates[2 * HIDDEN + h][c] = dh * tanh_cell * out * (1.0f - out);
            gates[3 * HIDDEN + h][c] = dc * in * (1.0f - candidate * candidate);
            cell[h][c] = dc * forget;
            hidden[h][c] = vec{};
        }
    vec transposed[BLOCK][GATE_VECTORS];
    transpose(gates, transposed);
    for (int b = 0; b < BLOCK; b++)
        for (int v = 0; v < GATE_VECTORS; v++) back.biases[LAYER][v] += transposed[b][v];
    add_outer<inputs_of(LAYER)>(inputs, transposed, back.weights_of(LAYER));
    add_outer<HIDDEN>(before.hidden, transposed, back.weights_of(LAYER) + inputs_of(LAYER));
    const float *weight = rule.weight(LAYER);
    multiply<HIDDEN, GATES>(weight + inputs_of(LAYER), 1, width, nullptr, gates, hidden);
    if constexpr (LAYER > 0) multiply<HIDDEN, GATES>(weight, 1, width, nullptr, gates, back.hidden[LAYER - 1]);
#if RELATIVE
    if constexpr (LAYER == 0) multiply<HIDDEN, GATES>(weight, 1, width, nullptr, gates, back.encoded);
#endif
}

#if RELATIVE
void backward_encoder(const Step &step, Backward &back) {
    for (int h = 0; h < HIDDEN; h++)
        for (int c = 0; c < COLUMNS; c++) {
            const vec encoded = step.encoded[h][c];
            const vec slope = encoded < 0.0f ? encoded + 1.0f : vec{} + 1.0f, own = back.encoded[h][c] * slope;
            for (int f = 0; f < FEATURES; f++) back.encoder[h][f][c] += own * step.features[f][c];
            back.encoder_bias[h][c] += own;
            back.encoded[h][c] = vec{};
        }
}
#endif

template <int LAYER>
void backward_layers(const Rule &rule, Memory before, Step &step, Backward &back) {
    const Row *inputs = LAYER ? step.layers[LAYER - 1].hidden : step.inputs();
    backward_layer<LAYER>(rule, inputs, before.layers[LAYER], step.activations[LAYER], back);
    if constexpr (LAYER > 0) backward_layers<LAYER - 1>(rule, before, step, back);
}

void backward_step(const Rule &rule, Memory before, Step &step, Backward &back) {
#if RELATIVE
    Row output;
    read_out(rule, step.after(), output);
    for (int c = 0; c < COLUMNS; c++) back.cotangent[c] *= 1.0f - output[c] * output[c];
#endif
    for (int h = 0; h < HIDDEN; h++)
        for (int c = 0; c < COLUMNS; c++) {
            const vec cotangent = rule.output_scale * back.cotangent[c];
            back.output[h][c] += cotangent * step.layers[LAYERS - 1].hidden[h][c];
            back.hidden[LAYERS - 1][h][c] += cotangent * rule.output()[h];
        }
    for (int c = 0; c < COLUMNS; c++) back.output_bias[c] += rule.output_scale * back.cotangent[c];
    backward_layers<LAYERS - 1>(rule, before, step, back);
#if RELATIVE
    backward_encoder(step, back);
#endif
}

double sum(const Row &row) {
    double total = 0;
    for (int i = 0; i < BLOCK; i++) total += ((const float *)row)[i];
    return total;
}

// Adds one block's share to the sums over all blocks, which are in double precision since there are many.
void add_block(Backward &back, double *gradient) {
    for (int layer = 0; layer < LAYERS; layer++) {
        const int width = inputs_of(layer) + HIDDEN;
        for (int k = 0; k < width; k++)
            for (int g = 0; g < GATES; g++)
                gradient[weight_at(layer) + g * width + k] += ((float *)back.weights_of(layer)[k])[g];
        for (int g = 0; g < GATES; g++) gradient[bias_at(layer) + g] += ((float *)back.biases[layer])[g];
    }
    for (int h = 0; h < HIDDEN; h++) gradient[OUTPUT_AT + h] += sum(back.output[h]);
    gradient[OUTPUT_AT + HIDDEN] += sum(back.output_bias);
#if RELATIVE
    for (int h = 0; h < HIDDEN; h++) {
        for (int f = 0; f < FEATURES; f++) gradient[ENCODER_AT + h * FEATURES + f] += sum(back.encoder[h][f]);
        gradient[ENCODER_AT + HIDDEN * FEATURES + h] += sum(back.encoder_bias[h]);
    }
#endif
}

int least(long a, int b) { return a < b ? a : b; }

// Between two steps an optimizer keeps a block's state in float32 or in bfloat16, the upper half of each float.
typedef unsigned whole __attribute__((vector_size(4 * LANES), may_alias));
typedef unsigned short halves __attribute__((vector_size(2 * LANES), may_alias));
constexpr int STATE_VECTORS = LAYERS * sizeof(State) / sizeof(vec);

State *open_state(State *kept, State *) { return kept; }
void close_state(State *, const State *) {}

State *open_state(const halves *kept, State *state) {
    for (int i = 0; i < STATE_VECTORS; i++) ((whole *)state)[i] = __builtin_convertvector(kept[i], whole) << 16;
    return state;
}

void close_state(halves *kept, const State *state) {
    for (int i = 0; i < STATE_VECTORS; i++) {
        const whole number = ((const whole *)state)[i];
        kept[i] = __builtin_convertvector((number + 0x7fff + (number >> 16 & 1)) >> 16, halves);  // nearest, or even
    }
}

template <typename Kept, int BLOCK_LENGTH>
void optimize_one(const Rule &rule, float factor, long count, const float *gradient, Kept *kept, Momentum *momenta,
                  float *theta) {
    Step step;
    for (long start = 0; start < count; start += BLOCK, kept += BLOCK_LENGTH, momenta += MOMENTA) {
        const int size = least(count - start, BLOCK);
        const Memory memory(open_state(kept, step.layers), momenta);
        forward_step(rule, gradient + start, size, memory, memory, step);
        Row output;
        read_out(rule, memory, output);
        for (int i = 0; i < size; i++) theta[start + i] += factor * (rule.output_scale * ((float *)output)[i]);
        close_state(kept, memory.layers);
    }
}

}  // namespace

extern "C" {

int block_size() { return BLOCK; }

// Takes one step: `gradient` and `update` have `count` numbers, the states and momenta one entry for each block.
void forward(const float *parameters, float preprocessing, const double *decays, float output_scale, long count,
             const float *gradient, void *before, void *momenta_before, void *after, void *momenta_after,
             float *update) {
    const Rule rule{parameters, preprocessing, decays, output_scale};
    Step step;
    for (long start = 0; start < count; start += BLOCK) {
        const long block = start / BLOCK;
        const int size = least(count - start, BLOCK);
        const Memory next(after, momenta_after, block);
        forward_step(rule, gradient + start, size, Memory(before, momenta_before, block), next, step);
        Row output;
        read_out(rule, next, output);
        for (int i = 0; i < size; i++) update[start + i] = output_scale * ((float *)output)[i];
    }
}

// Adds the meta-gradient of K steps to `meta_gradient`: gradients[t] is the input of step t, cotangents[t] dL/dg of it.
void backward(const float *parameters, float preprocessing, const double *decays, float output_scale, long count,
              long steps, const float *const *gradients, const float *const *cotangents, void *before, void *momenta,
              double *meta_gradient) {
    const Rule rule{parameters, preprocessing, decays, output_scale};
    const std::unique_ptr<Step[]> tape(new Step[steps]);
    const std::unique_ptr<Backward> back(new Backward);
    for (long start = 0; start < count; start += BLOCK) {
        const Memory first(before, momenta, start / BLOCK);
        const int size = least(count - start, BLOCK);
        for (long t = 0; t < steps; t++) {
            const Memory last = t ? tape[t - 1].after() : first;
            forward_step(rule, gradients[t] + start, size, last, tape[t].after(), tape[t]);
        }
        std::memset((void *)back.get(), 0, sizeof(Backward));
        for (long t = steps - 1; t >= 0; t--) {
            std::memcpy(back->cotangent, cotangents[t] + start, size * sizeof(float));
            backward_step(rule, t ? tape[t - 1].after() : first, tape[t], *back);
        }
        add_block(*back, meta_gradient);
    }
}

// Steps each of `number` parameters in place: theta, of `count` numbers, moves by factor times the step;
// states and momenta have entries for each block, as in `forward`, or the states alone are in bfloat16.
void optimize(const float *parameters, float preprocessing, const double *decays, float output_scale, float factor,
              int in_bfloat16, long number, const long *counts, const float *const *gradients, void *const *states,
              void *const *momenta, float *const *thetas) {
    const Rule rule{parameters, preprocessing, decays, output_scale};
    for (long i = 0; i < number; i++) {
        Momentum *const means = (Momentum *)momenta[i];
        if (in_bfloat16)
            optimize_one<halves, STATE_VECTORS>(rule, factor, counts[i], gradients[i], (halves *)states[i], means,
                                                thetas[i]);
        else
            optimize_one<State, LAYERS>(rule, factor, counts[i], gradients[i], (State *)states[i], means, thetas[i]);
    }
}
}
