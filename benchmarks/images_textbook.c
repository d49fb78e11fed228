/* The textbook recursion of a convolutional network with relu for pairs of images: the peer of benchmarks/images.py.

   gcc -O3 -march=native -ffast-math -shared -fPIC -DREAL=float images_textbook.c -o images_textbook.so -lm

   Convolutions 3 x 3, "same", stride 1; then global average pooling (all planes of equal offset q - p) or sites side by
   side (the plane of offset 0); then a dense layer with weight_std 1 and no bias. Covariances as they are, without the
   arithmetic that keeps the digits of near pairs. Angle: Abramowitz and Stegun 4.4.46 in float, the C library in double. */
#include <tgmath.h>
#include <stdlib.h>
#include <string.h>

static const REAL PI = (REAL)3.14159265358979323846;

/* acos(c)/(2 pi) as a fraction of a turn from +1, for c in [-1, 1]. */
static inline REAL angle(REAL c) {
    if (sizeof(REAL) == 8) return acos(c);
    REAL a = c < 0 ? -c : c;
    REAL p = (REAL)-0.0012624911;
    p = p * a + (REAL)0.0066700901;
    p = p * a - (REAL)0.0170881256;
    p = p * a + (REAL)0.0308918810;
    p = p * a - (REAL)0.0501743046;
    p = p * a + (REAL)0.0889789874;
    p = p * a - (REAL)0.2145988016;
    p = p * a + (REAL)1.5707963050;
    p *= sqrt(1 - a > 0 ? 1 - a : (REAL)0);
    return c < 0 ? PI - p : p;
}

/* Sums over 3 rows and 3 columns of a rectangle, zeros outside. */
static void box(const REAL *restrict in, REAL *restrict rows, REAL *restrict out, int h, int w) {
    for (int y = 0; y < h; y++) {
        const REAL *r = in + y * w;
        REAL *o = rows + y * w;
        if (w == 1) { o[0] = r[0]; continue; }
        o[0] = r[0] + r[1];
        for (int x = 1; x < w - 1; x++) o[x] = r[x - 1] + r[x] + r[x + 1];
        o[w - 1] = r[w - 2] + r[w - 1];
    }
    for (int y = 0; y < h; y++) {
        const REAL *a = rows + (y ? y - 1 : y) * w, *b = rows + y * w, *c = rows + (y < h - 1 ? y + 1 : y) * w;
        REAL up = y > 0, down = y < h - 1;
        for (int x = 0; x < w; x++) out[y * w + x] = up * a[x] + b[x] + down * c[x];
    }
}

/* Standard deviations before each activation, (layers, H, W), of one image (H, W, channels). */
void deviations(const REAL *image, int H, int W, int channels, int layers, REAL w2, REAL b2, REAL *out) {
    int P = H * W;
    REAL *v = malloc(3 * P * sizeof(REAL)), *rows = v + P, *sums = rows + P;
    for (int p = 0; p < P; p++) {
        v[p] = 0;
        for (int c = 0; c < channels; c++) v[p] += image[p * channels + c] * image[p * channels + c];
        v[p] /= channels;
    }
    for (int l = 0; l < layers; l++) {
        box(v, rows, sums, H, W);
        for (int p = 0; p < P; p++) {
            REAL s = w2 * sums[p] / 9 + b2;
            out[l * P + p] = sqrt(s);
            v[p] = s / 2;
        }
    }
    free(v);
}

static inline void layer(REAL *restrict C, REAL *restrict T, REAL *restrict rows, REAL *restrict S, REAL *restrict D,
                         const REAL *restrict s, const REAL *restrict t, int h, int w, int W, REAL w2, REAL b2) {
    box(C, rows, S, h, w);
    box(T, rows, D, h, w);
    for (int y = 0; y < h; y++) {
        const REAL *a = s + y * W, *b = t + y * W;
        REAL *c = C + y * w, *d = T + y * w;
        const REAL *Sy = S + y * w, *Dy = D + y * w;
        for (int x = 0; x < w; x++) {
            REAL sigma = w2 / 9 * Sy[x] + b2, theta = w2 / 9 * Dy[x] + sigma;
            REAL size = a[x] * b[x];
            REAL rho = size > 0 ? sigma / size : 0;
            rho = rho > 1 ? 1 : rho < -1 ? -1 : rho;
            REAL rest = PI - angle(rho);
            c[x] = size * (sqrt(1 - rho * rho) + rho * rest) / (2 * PI);
            d[x] = theta * rest / (2 * PI);
        }
    }
}

/* Sigma and Theta of the output for one pair of images, from `deviations` of both. */
void pair(const REAL *x, const REAL *y, const REAL *sx, const REAL *sy, int H, int W, int channels, int layers, REAL w2,
          REAL b2, int pooled, double *out) {
    int P = H * W;
    REAL *work = malloc(5 * P * sizeof(REAL)), *C = work, *T = C + P, *rows = T + P, *S = rows + P, *D = S + P;
    double sums[2] = {0, 0};
    int ey = pooled ? H - 1 : 0, ex = pooled ? W - 1 : 0;
    for (int dy = -ey; dy <= ey; dy++)
        for (int dx = -ex; dx <= ex; dx++) {
            int h = H - abs(dy), w = W - abs(dx);
            int p0 = (dy < 0 ? -dy : 0) * W + (dx < 0 ? -dx : 0), q0 = (dy > 0 ? dy : 0) * W + (dx > 0 ? dx : 0);
            for (int i = 0; i < h; i++)
                for (int j = 0; j < w; j++) {
                    const REAL *u = x + (p0 + i * W + j) * channels, *v = y + (q0 + i * W + j) * channels;
                    REAL dot = 0;
                    for (int c = 0; c < channels; c++) dot += u[c] * v[c];
                    C[i * w + j] = dot / channels;
                }
            memset(T, 0, (size_t)h * w * sizeof(REAL));
            for (int l = 0; l < layers; l++)
                layer(C, T, rows, S, D, sx + l * P + p0, sy + l * P + q0, h, w, W, w2, b2);
            for (int i = 0; i < h * w; i++) {
                sums[0] += C[i];
                sums[1] += T[i];
            }
        }
    double count = pooled ? (double)P * P : P;
    out[0] = sums[0] / count;
    out[1] = sums[1] / count + out[0];
    free(work);
}
