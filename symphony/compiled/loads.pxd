cimport cython
from libc.string cimport memcpy

cdef extern from *:
    """
    #include <stdint.h>
    #include <string.h>
    #if defined(__BYTE_ORDER__) && __BYTE_ORDER__ == __ORDER_BIG_ENDIAN__
    #define SYMPHONY_LITTLE32(x) __builtin_bswap32(x)
    #define SYMPHONY_LITTLE64(x) __builtin_bswap64(x)
    #else
    #define SYMPHONY_LITTLE32(x) (x)
    #define SYMPHONY_LITTLE64(x) (x)
    #endif
    static inline uint32_t symphony_load32(const unsigned char *p) {
        uint32_t x; memcpy(&x, p, 4); return SYMPHONY_LITTLE32(x);
    }
    static inline uint64_t symphony_load64(const unsigned char *p) {
        uint64_t x; memcpy(&x, p, 8); return SYMPHONY_LITTLE64(x);
    }
    """
    unsigned int symphony_load32(const unsigned char *) noexcept nogil
    unsigned long long symphony_load64(const unsigned char *) noexcept nogil

@cython.boundscheck(False)
@cython.wraparound(False)
cdef inline unsigned int load32(const unsigned char[::1] frame, long long at) noexcept:
    return symphony_load32(&frame[at])

@cython.boundscheck(False)
@cython.wraparound(False)
cdef inline unsigned long long load64(const unsigned char[::1] frame, long long at) noexcept:
    return symphony_load64(&frame[at])

@cython.boundscheck(False)
@cython.wraparound(False)
cdef inline long long load64s(const unsigned char[::1] frame, long long at) noexcept:
    return <long long>symphony_load64(&frame[at])
