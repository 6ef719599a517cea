/*
 * Traffic between a correspondent and a guest, for demo and tests: numbered UDP both ways, TCP bulk both ways, a request/response
 * and an idle TCP session. `traffic serve` is the guest's end, `traffic run` the correspondent's.
 *
 * One translation unit without dependencies: gcc -O2 -static traffic.c -o traffic
 */
#define _GNU_SOURCE
#include "traffic-wire.h"

#include "traffic-serve.h"

#include "traffic-measure.h"

#include "traffic-run.h"

static const char usage[] =
    "usage: traffic serve [--address 0.0.0.0] [--port 7001] [--bulk-port 7002]\n"
    "       traffic run --to ADDRESS [--port 7001] [--bulk-port 7002] [--pps-down 1000] [--pps-up 1000]\n"
    "                   [--bulk-mbit 20] [--rr-ms 20] [--wait 30]\n"
    "--pps-* 0 to 20000 packets/s, --bulk-mbit 0 to 1000 Mbit/s each way, --rr-ms 0 to 10000 between requests,\n"
    "--wait 0 to 600 s for the guest to answer; 0 turns a kind of traffic off.\n";

__attribute__((noreturn)) static void misuse(void)
{
    fputs(usage, stderr);
    exit(2);
}

static unsigned number(const char *text, unsigned least, unsigned most)
{
    char *end;
    unsigned long value = strtoul(text, &end, 10);

    if (*text < '0' || *text > '9' || *end != '\0' || value < least || value > most)
        misuse();
    return (unsigned)value;
}

int main(int count, char **words)
{
    struct options options = {.port = DEFAULT_PORT, .bulk_port = DEFAULT_BULK_PORT, .pps_down = 1000, .pps_up = 1000, .bulk_mbit = 20, .rr_ms = 20, .wait_s = 30};
    const char *address = "0.0.0.0";
    bool serving = count > 1 && strcmp(words[1], "serve") == 0, running = count > 1 && strcmp(words[1], "run") == 0, known = false;

    setvbuf(stdout, NULL, _IOLBF, 4096);
    if ((!serving && !running) || count % 2 != 0)
        misuse();
    for (int i = 2; i + 1 < count; i += 2) {
        const char *name = words[i], *value = words[i + 1];
        if (strcmp(name, "--port") == 0)
            options.port = (uint16_t)number(value, 1, UINT16_MAX);
        else if (strcmp(name, "--bulk-port") == 0)
            options.bulk_port = (uint16_t)number(value, 1, UINT16_MAX);
        else if (serving && strcmp(name, "--address") == 0)
            address = value;
        else if (running && strcmp(name, "--to") == 0)
            known = inet_pton(AF_INET, value, &options.to) == 1;
        else if (running && strcmp(name, "--pps-down") == 0)
            options.pps_down = number(value, 0, MAX_PPS);
        else if (running && strcmp(name, "--pps-up") == 0)
            options.pps_up = number(value, 0, MAX_PPS);
        else if (running && strcmp(name, "--bulk-mbit") == 0)
            options.bulk_mbit = number(value, 0, MAX_BULK_MBIT);
        else if (running && strcmp(name, "--rr-ms") == 0)
            options.rr_ms = number(value, 0, 10000);
        else if (running && strcmp(name, "--wait") == 0)
            options.wait_s = number(value, 0, 600);
        else
            misuse();
    }
    if (serving)
        serve(address, options.port, options.bulk_port);
    else if (known)
        run_correspondent(options);
    else
        misuse();
    return 0;
}
