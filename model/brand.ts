declare const brand: unique symbol;

/** A primitive that only its own parser can make, so that a host name is never taken for a VM's. */
export type Brand<T, Name extends string> = T & { readonly [brand]: Name };
