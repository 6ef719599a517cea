/*
 * Writes to MEGABYTES of memory as fast as it can, again and again: a guest that a migration cannot catch up with.
 */
#include <stdio.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <unistd.h>

int main(int count, char **words)
{
    unsigned long megabytes = count == 2 ? strtoul(words[1], NULL, 10) : 0, size = megabytes << 20;
    volatile unsigned char *memory;

    if (megabytes == 0 || megabytes > 65536) {
        fputs("usage: dirty MEGABYTES\n", stderr);
        return 2;
    }
    /* The rest of the guest comes first. */
    if (nice(19) == -1)
        return 1;
    memory = mmap(NULL, size, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_POPULATE, -1, 0);
    if (memory == MAP_FAILED) {
        perror("dirty");
        return 1;
    }
    /* Neither all zero nor all alike: such pages cost a migration nothing. */
    for (unsigned long round = 1;; round++)
        for (unsigned long at = 0; at < size; at += sizeof(unsigned long))
            *(volatile unsigned long *)(memory + at) = (at + round) * 2654435761UL;
}
