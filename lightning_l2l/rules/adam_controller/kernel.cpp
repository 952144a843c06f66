// The controller's step on float32 tensors in one pass over memory, which is what takes the time.
#include <cmath>
#include <cfloat>

namespace {

struct Factors {  // of one tensor; see arithmetic.py
    float m9, grad, m99, v99, mixture, epsilon, direction, orthogonal;
};

template <bool averages, bool matrix>
void step(long count, float* __restrict theta, const float* __restrict grad, float* __restrict m9,
         float* __restrict m99, float* __restrict v99, float* __restrict v999, const float* __restrict orthogonal,
         const Factors f) {
    for (long i = 0; i < count; ++i) {
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
constexpr long BLOCK = 4096;  // coordinates whose sums are taken in float32

// Moves the running means on, and adds up what the statistics need; see arithmetic.py for the order of the sums.
void average(long count, const float* __restrict theta, const float* __restrict grad, float* __restrict m9,
             float* __restrict m99, float* __restrict v99, float* __restrict v999, double* sums) {
    for (int k = 0; k < SUMS; ++k) sums[k] = 0;
    for (long begin = 0; begin < count; begin += BLOCK) {
        const long end = begin + BLOCK < count ? begin + BLOCK : count;
        float of[SUMS][LANES] = {};
        for (long first = begin; first < end; first += LANES) {
            const int lanes = end - first < LANES ? end - first : LANES;
            for (int lane = 0; lane < lanes; ++lane) {
                const long i = first + lane;
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

}  // namespace

extern "C" void average(long tensors, const long* counts, float* const* theta, const float* const* grad,
                        float* const* m9, float* const* m99, float* const* v99, float* const* v999, double* sums) {
    for (long n = 0; n < tensors; ++n)
        average(counts[n], theta[n], grad[n], m9[n], m99[n], v99[n], v999[n], sums + SUMS * n);
}

// Steps tensors; averages tells whether it moves the running means on before.
extern "C" void step(long tensors, const long* counts, float* const* theta, const float* const* grad,
                     float* const* m9, float* const* m99, float* const* v99, float* const* v999,
                     const float* const* orthogonal, const Factors* factors, int averages) {
    const auto of_matrix = averages ? step<true, true> : step<false, true>;
    const auto of_vector = averages ? step<true, false> : step<false, false>;
    for (long n = 0; n < tensors; ++n)
        (orthogonal[n] ? of_matrix : of_vector)(counts[n], theta[n], grad[n], m9[n], m99[n], v99[n], v999[n], orthogonal[n], factors[n]);
}
