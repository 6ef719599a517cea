/** Whether an interface's name fits `pattern`, in which `*` stands for any text and `?` for one character. */
export function fits(pattern: string, name: string): boolean {
  const source = pattern.replace(/[^\w*?]/g, "\\$&").replace(/\*/g, ".*").replace(/\?/g, ".");
  return new RegExp(`^${source}$`).test(name);
}
