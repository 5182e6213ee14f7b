"""What can be measured of how the page looks: contrast, sizes of controls, widths."""

# WCAG AA, for text of any size.
MIN_CONTRAST = 4.5
# Pixels, for a finger.
MIN_TOUCH = 44
PHONE = {"width": 375, "height": 740}
# The luminance and contrast of WCAG 2.
LOW_CONTRAST = """(minimum) => {
    const numbers = (color) => color.match(/[\\d.]+/g).map(Number);
    const linear = (c) => c <= 0.04045 ? c / 12.92 : ((c + 0.055) / 1.055) ** 2.4;
    const luminance = (color) => {
        const [r, g, b] = numbers(color).slice(0, 3).map(c => linear(c / 255));
        return 0.2126 * r + 0.7152 * g + 0.0722 * b;
    };
    const background = (node) => {
        if (!node) return "rgb(255, 255, 255)";
        const color = getComputedStyle(node).backgroundColor;
        return numbers(color)[3] === 0 ? background(node.parentElement) : color;
    };
    const hasText = (node) => node.checkVisibility()
        && [...node.childNodes].some(child => child.nodeType === 3 && child.data.trim());
    // The copy of a text below its field has no colour: what is seen is the field's text.
    const colorOf = (node) => {
        const { color } = getComputedStyle(node);
        const field = document.getElementById("text");
        return numbers(color)[3] === 0 ? getComputedStyle(field).color : color;
    };
    const contrast = (node) => {
        const a = luminance(colorOf(node));
        const b = luminance(background(node));
        return (Math.max(a, b) + 0.05) / (Math.min(a, b) + 0.05);
    };
    return [...document.querySelectorAll("body *")].filter(hasText)
        .filter(node => contrast(node) < minimum)
        .map(node => [contrast(node), node.outerHTML.slice(0, 80)]);
}"""
# A box to tick is as large as its label.
SMALL_CONTROLS = """(minimum) =>
    [...document.querySelectorAll("button, .button, input, select, textarea, nav a")]
        .filter(node => node.checkVisibility({ visibilityProperty: true }))
        .map(node => node.matches("[type=checkbox], [type=radio]") ? node.closest("label") : node)
        .filter(node => {
            const { width, height } = node.getBoundingClientRect();
            return Math.min(width, height) < minimum;
        })
        .map(node => node.outerHTML.slice(0, 200))"""
# Code and tables scroll within their blocks.
TOO_WIDE = """() => [...document.querySelectorAll("body *:not(pre *, .table *, .visually-hidden)")]
    .filter(node => node.checkVisibility({ visibilityProperty: true }) && !node.closest(".skip"))
    .filter(node => {
        const { left, right, width } = node.getBoundingClientRect();
        return width > 1 && (left < -0.5 || right > document.documentElement.clientWidth + 0.5);
    })
    .concat([document.documentElement, document.getElementById("scroller")]
        .filter(node => node.scrollWidth > node.clientWidth))
    .map(node => node.outerHTML.slice(0, 200))"""
