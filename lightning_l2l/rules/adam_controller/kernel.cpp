// The controller's work on float32 tensors in as few passes over memory as can be, which is what takes the time, and the
// statistics of many small tensors in one call.
#include <algorithm>
#include <cfloat>
#include <cmath>
#include <cstdint>

namespace {

struct Piece {  // of a tensor: how many coordinates, and the addresses of all that belongs to them; see kernel.py
    int64_t count;
    float *theta, *grad, *m9, *m99, *v99, *v999, *orthogonal, *memory;
};

struct Controls {  // of a tensor, as the network gives them
    float m9, grad, m99, mixture, epsilon, orthogonal;
};

double bias_correction(double decay, double t) { return -std::expm1(t * std::log(decay)); }

// What the step is made of at step t: controls with bias corrections folded in.
struct Factors {
    float m9, grad, m99, v99, mixture, epsilon, direction, orthogonal;
    float of_grad, of_m99, of_epsilon;  // the corrections alone

    Factors(const Controls& controls, double t, double factor) {
        const double c9 = bias_correction(0.9, t), c99 = bias_correction(0.99, t), c999 = bias_correction(0.999, t);
        of_grad = c9, of_m99 = c9 / c99, of_epsilon = std::sqrt(c999);
        m9 = controls.m9, grad = controls.grad * of_grad, m99 = controls.m99 * of_m99;
        v99 = c999 / c99, mixture = controls.mixture, epsilon = controls.epsilon * of_epsilon;
        direction = -factor * of_epsilon / c9, orthogonal = -factor * controls.orthogonal;
    }
};

template <bool averages, bool matrix>
void step(int64_t count, float* __restrict theta, const float* __restrict grad, float* __restrict m9,
          float* __restrict m99, float* __restrict v99, float* __restrict v999, const float* __restrict orthogonal,
          const Factors f) {
    for (int64_t i = 0; i < count; ++i) {
        const float g = grad[i];
        float fast = m9[i], slow = m99[i], square = v99[i], slow_square = v999[i];
        if (averages) {
            m9[i] = fast += 0.1f * (g - fast);
            m99[i] = slow += 0.01f * (g - slow);
            v99[i] = square += 0.01f * (g * g - square);
            v999[i] = slow_square += 0.001f * (g * g - slow_square);
        }
        const float direction = f.m9 * fast + f.grad * g + f.m99 * slow;
        const float mixed = slow_square + f.mixture * (f.v99 * square - slow_square);
        const float root = std::sqrt(mixed < FLT_MIN ? FLT_MIN : mixed) + f.epsilon;
        theta[i] += f.direction * direction / root + (matrix ? f.orthogonal * orthogonal[i] : 0.0f);
    }
}

constexpr int LANES = 16, SUMS = 10;
constexpr int64_t BLOCK = 4096;  // coordinates whose sums are taken in float32

// Moves the running means on, and adds up what the statistics need; see arithmetic.py for the order of the sums.
void average(int64_t count, const float* __restrict theta, const float* __restrict grad, float* __restrict m9,
             float* __restrict m99, float* __restrict v99, float* __restrict v999, double* sums) {
    std::fill(sums, sums + SUMS, 0.0);
    for (int64_t begin = 0; begin < count; begin += BLOCK) {
        const int64_t end = std::min(begin + BLOCK, count);
        float of[SUMS][LANES] = {};
        for (int64_t first = begin; first < end; first += LANES) {
            const int lanes = end - first < LANES ? end - first : LANES;
            for (int lane = 0; lane < lanes; ++lane) {
                const int64_t i = first + lane;
                const float g = grad[i], last = m9[i];
                const float fast = last + 0.1f * (g - last), slow = m99[i] + 0.01f * (g - m99[i]);
                const float square = v99[i] + 0.01f * (g * g - v99[i]);
                const float slow_square = v999[i] + 0.001f * (g * g - v999[i]);
                m9[i] = fast, m99[i] = slow, v99[i] = square, v999[i] = slow_square;
                of[0][lane] += last * last, of[1][lane] += g * last, of[2][lane] += g * g;
                of[3][lane] += theta[i] * theta[i], of[4][lane] += fast * fast, of[5][lane] += fast * slow;
                of[6][lane] += slow * slow, of[7][lane] += square, of[8][lane] += slow_square;
                of[9][lane] += fast * fast / (square < FLT_MIN ? FLT_MIN : square);
            }
        }
        for (int k = 0; k < SUMS; ++k)
            for (int lane = 0; lane < LANES; ++lane) sums[k] += of[k][lane];
    }
}

// From the derivatives with respect to a step and to the running means after it, to those with respect to the running
// means before it, which take their places, to the gradient and to the controls.
template <bool matrix>
void backward(int64_t count, const float* __restrict grad, const float* __restrict m9, const float* __restrict m99,
              const float* __restrict v99, const float* __restrict v999, const float* __restrict orthogonal,
              const float* __restrict of_step, float* __restrict of_grad, float* __restrict of_m9,
              float* __restrict of_m99, float* __restrict of_v99, float* __restrict of_v999, const Factors f,
              Controls& of_controls) {
    double sums[6] = {};
    for (int64_t begin = 0; begin < count; begin += BLOCK) {
        const int64_t end = std::min(begin + BLOCK, count);
        float of[6][LANES] = {};
        for (int64_t first = begin; first < end; first += LANES) {
            const int lanes = end - first < LANES ? end - first : LANES;
            for (int lane = 0; lane < lanes; ++lane) {
                const int64_t i = first + lane;
                const float g = grad[i], fast = m9[i], slow = m99[i], slow_square = v999[i], step = of_step[i];
                const float difference = f.v99 * v99[i] - slow_square, mixed = slow_square + f.mixture * difference;
                const float root = std::sqrt(mixed < FLT_MIN ? FLT_MIN : mixed), below = root + f.epsilon;
                const float of_direction = f.direction * step / below;
                const float of_below = -of_direction * (f.m9 * fast + f.grad * g + f.m99 * slow) / below;
                const float of_mixed = (mixed < FLT_MIN ? 0.0f : of_below) / (2 * root);
                of[0][lane] += of_direction * fast, of[1][lane] += of_direction * g, of[2][lane] += of_direction * slow;
                of[3][lane] += of_mixed * difference, of[4][lane] += of_below;
                if (matrix) of[5][lane] += step * orthogonal[i];
                const float of_fast = of_m9[i] + of_direction * f.m9, of_slow = of_m99[i] + of_direction * f.m99;
                const float of_square = of_v99[i] + of_mixed * f.mixture * f.v99;
                const float of_slow_square = of_v999[i] + of_mixed * (1 - f.mixture);
                of_grad[i] = of_direction * f.grad + 0.1f * of_fast + 0.01f * of_slow +
                             2 * g * (0.01f * of_square + 0.001f * of_slow_square);
                of_m9[i] = 0.9f * of_fast, of_m99[i] = 0.99f * of_slow;
                of_v99[i] = 0.99f * of_square, of_v999[i] = 0.999f * of_slow_square;
            }
        }
        for (int k = 0; k < 6; ++k)
            for (int lane = 0; lane < LANES; ++lane) sums[k] += of[k][lane];
    }
    of_controls = {float(sums[0]), float(sums[1] * f.of_grad), float(sums[2] * f.of_m99),
                   float(sums[3]), float(sums[4] * f.of_epsilon), float(-sums[5])};
}

// The sums of O² and m₉ · O.
void multiply(const Piece& piece, double* sums) {
    sums[0] = sums[1] = 0;
    const float *__restrict direction = piece.orthogonal, *__restrict m9 = piece.m9;
    for (int64_t begin = 0; direction && begin < piece.count; begin += BLOCK) {
        const int64_t end = std::min(begin + BLOCK, piece.count);
        float of[2][LANES] = {};
        for (int64_t first = begin; first < end; first += LANES) {
            const int lanes = end - first < LANES ? end - first : LANES;
            for (int lane = 0; lane < lanes; ++lane) {
                const float o = direction[first + lane];
                of[0][lane] += o * o, of[1][lane] += o * m9[first + lane];
            }
        }
        for (int k = 0; k < 2; ++k)
            for (int lane = 0; lane < LANES; ++lane) sums[k] += of[k][lane];
    }
}

// Everything below is written out in statistics.py.
constexpr int FEATURES = 22, SHAPE = 5, SHARED = 6, OWN = 3, SIZES = 5;
constexpr double FIRST = 8, REFERENCE = 6, DECAY = 0.8, QUIET = 0.25, VANISHED = 1e-12, TINY = FLT_MIN;
const double SMALLEST = std::exp(-10.0), LARGEST = std::exp(10.0);

double log_ratio(double above, double below, double low, double high) {
    return std::log(std::clamp(above / std::max(TINY, below), std::exp(2 * low), std::exp(2 * high))) / 2;
}

double cosine(double product, double first, double second) {
    return std::clamp(product / std::max(TINY, std::sqrt(first) * std::sqrt(second)), -1.0, 1.0);
}

// From sums over a tensor and what it remembers to what it remembers, its own features and its sizes.
void remember(double count, const double* sums, const double* products, double t, double every, float* memory,
              float* own, float* sizes) {
    const double c9 = bias_correction(0.9, t), c99 = bias_correction(0.99, t), c999 = bias_correction(0.999, t);
    const double last = sums[0] / count, grad_last = sums[1] / count, grad = sums[2] / count;
    const double theta = sums[3] / count < LARGEST ? sums[3] / count : LARGEST;  // also where it is not a number
    const double m9 = sums[4] / count, m9_m99 = sums[5] / count, m99 = sums[6] / count;
    const double v99 = sums[7] / count / c99, v999 = sums[8] / count / c999, adam = sums[9] / count * c99 / (c9 * c9);
    const double orthogonal = products[0] / count, m9_orthogonal = products[1] / count;
    const double reference = t <= REFERENCE ? v99 : memory[1], fast = m9 / (c9 * c9);
    const double agreement = cosine(grad_last, grad, last) * (1 - DECAY) + DECAY * memory[0];
    const double runs = std::min(t, FIRST) + std::max(0.0, std::floor(t / every) - std::floor(FIRST / every));
    const double shared[SHARED] = {
        log_ratio(fast, v99, -4, 1),
        log_ratio(m99 / (c99 * c99), v99, -4, 1),
        cosine(m9_m99, m9, m99),
        agreement / bias_correction(DECAY, runs),
        log_ratio(v99, v999, -2, 2),
        0.35 * std::log(std::max(theta, SMALLEST)) + 1.75,
    };
    memory[0] = agreement, memory[1] = reference;
    std::copy(shared, shared + SHARED, memory + 2);
    own[0] = log_ratio(std::max(v99, TINY), reference, -5, 5) / 2;
    own[1] = log_ratio(adam, 1, -4, 1);
    own[2] = cosine(m9_orthogonal, m9, orthogonal);
    sizes[0] = std::sqrt(theta), sizes[1] = std::sqrt(adam), sizes[2] = std::sqrt(v99), sizes[3] = t;
    sizes[4] = fast > VANISHED * v999 ? std::sqrt(std::min(1.0, grad / std::max(TINY, QUIET * v99))) : 0;
}

float* put(const float* from, int count, float* to) { return std::copy(from, from + count, to); }

void describe(const float* shared, const float* everyone, const float* own, const float* shape, double t, float* to) {
    const float time[2] = {float(std::log(t + 0.5) / 3 - 1), float(2 / std::sqrt(t + 1))};
    to = put(shared + 5, 1, to);
    to = put(shared, 5, to);
    to = put(own, 2, to);
    to = put(shape, 1, to);
    to = put(time, 2, to);
    to = put(shape + 2, 3, to);
    to = put(everyone, SHARED, to);
    to = put(shape + 1, 1, to);
    put(own + 2, 1, to);
}

}  // namespace

// Sums over each piece, [pieces, 10]; the running means are moved on.
extern "C" void average(int64_t pieces, const Piece* piece, double* sums) {
    for (const Piece* end = piece + pieces; piece < end; ++piece, sums += SUMS)
        average(piece->count, piece->theta, piece->grad, piece->m9, piece->m99, piece->v99, piece->v999, sums);
}

// Sums over each piece of products with O, [pieces, 2].
extern "C" void multiply(int64_t pieces, const Piece* piece, double* sums) {
    for (int64_t n = 0; n < pieces; ++n) multiply(piece[n], sums + 2 * n);
}

// Steps pieces, θ ← θ + factor · g; averages tells whether it moves the running means on before.
extern "C" void step(int64_t pieces, const Piece* piece, const Controls* controls, const double* t, double factor,
                     int64_t averages) {
    const auto of_matrix = averages ? step<true, true> : step<false, true>;
    const auto of_vector = averages ? step<true, false> : step<false, false>;
    for (const Piece* end = piece + pieces; piece < end; ++piece)
        (piece->orthogonal ? of_matrix : of_vector)(piece->count, piece->theta, piece->grad, piece->m9, piece->m99,
                                                    piece->v99, piece->v999, piece->orthogonal,
                                                    Factors(*controls++, *t++, factor));
}

// Derivatives of that with factor 1 and averages; θ of the cotangents is that of the step.
extern "C" void backward(int64_t pieces, const Piece* piece, const Piece* cotangent, const Controls* controls,
                         const double* t, Controls* of_controls) {
    for (int64_t n = 0; n < pieces; ++n) {
        const Piece &own = piece[n], &of = cotangent[n];
        (own.orthogonal ? backward<true> : backward<false>)(
            own.count, own.grad, own.m9, own.m99, own.v99, own.v999, own.orthogonal, of.theta, of.grad, of.m9, of.m99,
            of.v99, of.v999, Factors(controls[n], t[n], 1), of_controls[n]);
    }
}

// Statistics of the tensors of several networks: the network's inputs [networks, tensors, 22] and sizes [networks,
// tensors, 5], from sums, at steps t [networks, tensors]. Tensors with t = 0 are seen by others, but do not change.
extern "C" void describe(int64_t networks, int64_t tensors, const Piece* piece, const double* sums,
                         const double* products, const double* t, const float* shapes, double every, float* inputs,
                         float* sizes) {
    for (int64_t network = 0; network < networks; ++network) {
        float everyone[SHARED] = {};
        for (int64_t n = 0; n < tensors; ++n) {
            float* own = inputs + FEATURES * n;  // kept there until the inputs are written
            if (t[n] > 0)
                remember(piece[n].count, sums + SUMS * n, products + 2 * n, t[n], every, piece[n].memory, own,
                         sizes + SIZES * n);
            for (int k = 0; k < SHARED; ++k) everyone[k] += piece[n].memory[2 + k] / tensors;
        }
        for (int64_t n = 0; n < tensors; ++n) {
            float own[OWN];
            put(inputs + FEATURES * n, OWN, own);
            describe(piece[n].memory + 2, everyone, own, shapes + SHAPE * n, t[n], inputs + FEATURES * n);
        }
        piece += tensors, sums += SUMS * tensors, products += 2 * tensors, t += tensors;
        inputs += FEATURES * tensors, sizes += SIZES * tensors;
    }
}
